"""What the authors' PyTorch port of MAXIM makes and never uses, so that its checkpoints load strictly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from mlpdeploy.zoo.maxim_blocks import CrossGating

if TYPE_CHECKING:
    from mlpdeploy.zoo.maxim import Maxim


class _Unused(nn.Module):
    """A 2x2 transposed convolution from no channels at all, which the port makes where it enlarges nothing."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, dim, 2, 2))
        self.bias = nn.Parameter(torch.zeros(dim))


def add_unused(network: Maxim, sizes: Sequence[int]) -> Maxim:
    """Everything that the port makes and never uses; `sizes` are those of the grid at each level."""
    dims = [network.features * 2**level for level in range(len(sizes))]
    for stage in range(network.stages):
        for level, (dim, size) in enumerate(zip(dims, sizes, strict=True)):
            decoder = network.get_submodule(f"stage_{stage}_decoder_block_{level}.UNetEncoderBlock_0")
            decoder.add_module("cross_gating_block", CrossGating(dim, dim, size))
            decoder.add_module("Conv_1", nn.Conv2d(dim, dim, 4, stride=2, padding=1))
            if stage == 0:
                encoder = network.part(stage, "encoder_block", level)
                encoder.add_module("cross_gating_block", CrossGating(dim, dim, size))
            else:
                inputs = min(2 * dim, dims[-1])
                network.add_module(f"stage_{stage}_input_catconv_{level}", nn.Conv2d(inputs, dim, 1))
    for block in [module for module in network.modules() if isinstance(module, CrossGating)]:
        if block.below is None:
            block.add_module("ConvTranspose_0", _Unused(block.Conv_0.out_channels))
    return network
