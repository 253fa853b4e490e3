"""What every kernel of ours shares.

configurations  GPUs and precisions in numbers, and a kernel's tile on a block
launching       PyTorch's tensors and sizes as a kernel takes them
tuning          measures configurations where there is a GPU, and remembers the best on disk
ahead           compiles for any GPU, without one
"""
