"""Segment-grouped projection on NVIDIA GPUs: a Triton kernel, its launcher for PyTorch, and its TensorRT plugin.

problem   sizes and precision of one projection, the kernel's configurations, and the one to use unmeasured
kernel    the kernel itself
launch    runs it on PyTorch tensors
ahead     compiles it for any GPU, without one
plugin    the TensorRT plugin
"""
