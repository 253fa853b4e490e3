"""A convolution of groups, spelled out in what Inductor makes one kernel of, or a library one product.

problem   sizes and precision of one convolution, and how it can be spelled
kernel    the spellings
launch    picks one for PyTorch tensors, by measurement
"""
