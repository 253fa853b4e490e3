"""Sizes that coincide: only random, asymmetric weights tell a wrong axis from the right one."""

from __future__ import annotations

import einops
import pytest
import torch.nn.functional as F
from torch import Tensor

from tests.graph.proof import fired, moves, prove
from tests.graph.rules.examples import Layers

T, C = Layers.T, Layers.C


def _permute_mlp(net: Layers, x: Tensor) -> Tensor:
    """Height and width branches of (b, h, w, (n s)) with h = w = n = s."""
    size = x.shape[1]
    high = einops.rearrange(x, "b h w (n s) -> b n w (h s)", n=size)
    wide = einops.rearrange(x, "b h w (n s) -> b h n (w s)", n=size)
    high = einops.rearrange(F.linear(high, net.weights[0]), "b n w (h s) -> b h w (n s)", h=size)
    return high + einops.rearrange(F.linear(wide, net.weights[1]), "b h n (w s) -> b h w (n s)", w=size)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_all_sizes_alike(size: int) -> None:
    result = prove(
        Layers(_permute_mlp, (size**2, size**2), (size**2, size**2)), (size, size, size**2), batches=(1, size, 5)
    )
    assert (fired(result)["project_segments"], moves(result)) == (2, 0)


def test_as_many_tokens_as_channels() -> None:
    """Mixing tokens, then channels, then the transposed result without going back."""

    def forward(net: Layers, x: Tensor) -> Tensor:
        x = x + net.channels(x.mT).mT
        return x + net.channels(x) + net.channels(x.mT)

    result = prove(Layers(forward), (C, C), batches=(1, 2, C, 7))
    assert fired(result)["project_tokens"] == 1
    assert moves(result) == 1


def test_a_square_grid_whose_sides_change_places() -> None:
    """Swapping height and width for good is no detour, though every shape stays the same."""

    def forward(net: Layers, x: Tensor) -> Tensor:
        return net.channels(x.transpose(1, 2)) + x

    result = prove(Layers(forward), (3, 3, C))
    assert moves(result) == 1


def test_a_batch_as_large_as_an_axis() -> None:
    def forward(net: Layers, x: Tensor) -> Tensor:
        return net.tokens(x.permute(2, 0, 1)).permute(1, 2, 0) + x

    result = prove(Layers(forward), (T, C), batches=(1, C, T, 3))
    assert (fired(result)["project_tokens"], moves(result)) == (1, 0)
