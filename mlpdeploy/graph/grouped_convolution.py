"""A convolution of groups as one operation, which compilers for GPUs may see spelled in another way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlpdeploy.graph.operation import Operation, define, on_gpu

_PLUGIN = "grouped_convolution"


@define("mlpdeploy::grouped_convolution", mutates_args=())
def grouped_convolution(
    x: Tensor,
    weight: Tensor,
    taps: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """A convolution along one dimension or two, of groups of channels.

    `x`: (B, C, *size). `weight`: (N, C / groups, *kernel). `taps`: the same numbers as (C / groups * places, N).
    `bias`: (N,). Returns (B, N, *size of the result). Compilers for NVIDIA GPUs see a sum of shifted maps, or a product
    of matrices for each group, unless the library's convolution was measured to be faster.
    """
    given = (x, weight, taps, bias, stride, padding, dilation, groups)
    result = on_gpu(_PLUGIN, *given)
    return by_convolving(*given) if result is None else result


def by_convolving(x: Tensor, weight: Tensor, taps: Tensor, bias: Tensor | None, *spans: Any) -> Tensor:
    """What the operation means; `spans`: stride, padding, dilation, groups."""
    convolve: Any = torch.conv1d if weight.dim() == 3 else torch.conv2d
    result: Tensor = convolve(x, weight, bias, *spans)
    return result


grouped_convolution.register_fake(by_convolving)

GROUPED_CONVOLUTION = torch.ops.mlpdeploy.grouped_convolution.default
CONVOLUTIONS_OF_GROUPS = (Operation(GROUPED_CONVOLUTION, by_convolving, _PLUGIN, (), steps=False),)
