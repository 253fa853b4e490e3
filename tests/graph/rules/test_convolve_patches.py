"""Linears on unfolded patches become convolutions, and those that are none stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.proof import fired, prove, targets
from tests.graph.rules.examples import Example, NearMiss, rafts

aten = torch.ops.aten
RULE = "convolve_patches"
SHAPE = (3, 8, 10)
Columns = Callable[[Tensor], Tensor]

EXAMPLE = Example(rafts, (3, 8, 8), fires=1)


class Net(nn.Module):
    """A linear on what `columns` makes of an image."""

    def __init__(self, columns: Columns) -> None:
        super().__init__()
        self.columns = columns
        self.linear = nn.Linear(columns(torch.zeros(1, *SHAPE)).shape[-1], 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.columns(x))


def _dilated(x: Tensor) -> Tensor:
    return F.unfold(x, 2, dilation=2, stride=2).transpose(1, 2)


def _half_apart(x: Tensor) -> Tensor:
    """Patches of 3 and of 2, whose centres lie half a pixel apart."""
    return torch.cat([F.unfold(x, 3, padding=1, stride=2), F.unfold(x, 2, padding=0, stride=2)], 1).transpose(1, 2)


def _two_images(x: Tensor) -> Tensor:
    return torch.cat([F.unfold(x, 2, stride=2), F.unfold(x.flip(2), 2, stride=2)], 1).transpose(1, 2)


def _rows(x: Tensor) -> Tensor:
    return F.unfold(x, 2, stride=2)


def _positions_too(x: Tensor) -> Tensor:
    columns = F.unfold(x, 2, stride=2).transpose(1, 2)
    return torch.cat([columns, columns.square()], 2)


def near_miss(columns: Columns, *why: str) -> NearMiss:
    return NearMiss(lambda: Net(columns), SHAPE, why)


NEAR_MISSES = {
    "dilated": near_miss(_dilated, "its patches are dilated"),
    "half a pixel apart": near_miss(_half_apart, "its patches do not lie inside the largest of them"),
    "two images": near_miss(_two_images, "its patches are not those of one image, equally far apart"),
    "rows": near_miss(_rows),
    "products of patches": near_miss(_positions_too),
}


def _both(x: Tensor) -> Tensor:
    """Patches of 4 and of 2, one after another and then transposed."""
    return torch.cat([F.unfold(x, 4, padding=1, stride=2), F.unfold(x, 2, stride=2)], 1).transpose(1, 2)


def _one(x: Tensor) -> Tensor:
    return F.unfold(x, (3, 2), padding=(1, 0), stride=(2, 1)).transpose(1, 2)


def _transposed_first(x: Tensor) -> Tensor:
    """The spelling of RaftMLP's authors."""
    parts = [F.unfold(x, size, padding=(size - 2) // 2, stride=2).permute(0, 2, 1) for size in (6, 2, 4)]
    return torch.cat(parts, 2)


@pytest.mark.parametrize("columns", [_both, _one, _transposed_first])
def test_patches_are_convolved(columns: Columns) -> None:
    result = prove(Net(columns), SHAPE)
    assert fired(result)[RULE] == 1
    assert targets(result)[aten.im2col.default] == 0
    assert targets(result)[aten.conv2d.default] == 1
