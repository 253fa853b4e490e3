"""Both products of an MLP over tokens, and GELU between them, in one Triton kernel.

problem   sizes and precision of one MLP, the kernel's configurations, and the one to use unmeasured
kernel    the kernel itself
launch    runs it on PyTorch tensors
ahead     compiles it for any GPU, without one
"""
