"""convolve_regions: 1x1 convolutions of regions in the channels, and those that keep their regions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.proof import fired, moves, prove, targets
from tests.graph.rules.examples import Example, NearMiss, Net, regions

aten = torch.ops.aten

EXAMPLE = Example(regions, (8, 4, 5), fires=4)


def _fold(x: Tensor, p: int, q: int) -> Tensor:
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // p, p, w // q, q).permute(0, 1, 3, 5, 2, 4)
    return x.reshape(b, c * p * q, h // p, w // q)


def _unfold(x: Tensor, p: int, q: int) -> Tensor:
    b, _, h, w = x.shape
    return x.reshape(b, -1, p, q, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, -1, h * p, w * q)


def _read_elsewhere(m: Net, x: Tensor) -> Tensor:
    y = m.conv(x)
    return _unfold(y, 2, 2).mean((2, 3)) + y.amax((2, 3))[:, :3]


NEAR_MISSES = {
    "of neighbours": NearMiss(
        lambda: Net(lambda m, x: m.conv(_fold(x, 2, 2)), conv=nn.Conv2d(12, 5, 3, padding=1)), (3, 4, 8)
    ),
    "strided": NearMiss(
        lambda: Net(lambda m, x: m.conv(_fold(x, 2, 2)), conv=nn.Conv2d(12, 5, 1, stride=2)), (3, 4, 8)
    ),
    "a region that is the whole map": NearMiss(
        lambda: Net(lambda m, x: m.conv(_fold(x, 4, 6)), conv=nn.Conv2d(72, 5, 1)), (3, 4, 6)
    ),
    "regions that something else reads": NearMiss(lambda: Net(_read_elsewhere, conv=nn.Conv2d(3, 12, 1)), (3, 4, 6)),
}


@pytest.mark.parametrize(("p", "q"), [(2, 1), (1, 3), (2, 3), (4, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_regions_in_the_channels_are_strided_convolutions(p: int, q: int, bias: bool) -> None:
    def mix(m: Net, x: Tensor) -> Tensor:
        return _unfold(m.second(F.relu(m.first(_fold(x, p, q)))), p, q) + x

    first, second = nn.Conv2d(3 * p * q, 5, 1, bias=bias), nn.Conv2d(5, 3 * p * q, 1, bias=bias)
    result = prove(Net(mix, first=first, second=second), (3, 4, 6))
    assert fired(result)["convolve_regions"] == 2
    assert moves(result) == 0
    assert targets(result)[aten.conv_transpose2d.input] == 1


def test_regions_may_be_slower_than_the_channels() -> None:
    def merge(m: Net, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 5, 3, 1, 2, 4)
        return m.reduction(x.reshape(b, 4 * c, h // 2, w // 2))

    result = prove(Net(merge, reduction=nn.Conv2d(12, 5, 1)), (3, 4, 6))
    assert fired(result)["convolve_regions"] == 1
    assert moves(result) == 0
