"""convolve_shifts: channels shifted in groups as a depthwise convolution, and what is no shift of one map."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpdeploy.zoo.as_mlp import AxialShift
from tests.graph.proof import fired, prove, targets
from tests.graph.rules.examples import Example, NearMiss, Net

aten = torch.ops.aten
CUTS = {aten.slice.Tensor, aten.narrow.default, aten.roll.default, aten.cat.default, aten.pad.default}

EXAMPLE = Example(lambda: AxialShift(10, 5), (10, 4, 5), fires=2)


def _cycled(x: Tensor) -> Tensor:
    padded = F.pad(x, (1, 1, 0, 0))
    return torch.cat([padded[:, r::3, :, r : r + x.shape[3]] for r in range(3)], 1)


def near_miss(function: Callable[[Tensor], Tensor], *why: str) -> NearMiss:
    return NearMiss(lambda: Net(lambda _, x: function(x)), (6, 4, 5), why)


NEAR_MISSES = {
    "channels in another order, and no convolution behind": NearMiss(
        lambda: Net(lambda _, x: F.relu(_cycled(x))),
        (7, 4, 5),
        ("its channels are in another order, and no convolution reads them",),
    ),
    "parts of two maps": near_miss(
        lambda x: torch.cat([F.pad(x, (1, 1, 0, 0))[..., 2:], F.pad(x * 2, (1, 1, 0, 0))[..., 2:]], 1),
        "its parts are of several maps, or do not fill one",
    ),
    "the same channels twice": near_miss(
        lambda x: torch.cat([F.pad(x, (1, 1, 0, 0))[:, :3, :, 2:], F.pad(x, (1, 1, 0, 0))[:, :3, :, 2:]], 1),
        "a channel is there twice",
    ),
    "a map of another size": near_miss(
        lambda x: torch.cat([part[..., :6] for part in F.pad(x, (1, 1, 0, 0)).chunk(2, 1)], 1),
        "its parts are of several maps, or do not fill one",
    ),
    "padded with ones": near_miss(
        lambda x: torch.cat([part[..., 2:] for part in F.pad(x, (1, 1, 0, 0), value=1.0).chunk(2, 1)], 1)
    ),
    "padded with the edge": near_miss(
        lambda x: torch.cat([part[..., 2:] for part in F.pad(x, (1, 1, 0, 0), mode="replicate").chunk(2, 1)], 1)
    ),
    "strided": near_miss(lambda x: torch.cat([part[..., ::2] for part in F.pad(x, (1, 1, 0, 0)).chunk(2, 1)], 1)),
    "no shift at all": near_miss(lambda x: torch.cat(x.chunk(2, 1), 1)),
}


def _shifted(x: Tensor, groups: int, dim: int) -> Tensor:
    reach, size = groups // 2, x.shape[dim]
    parts = F.pad(x, (reach,) * 4).chunk(groups, 1)
    moved = [part.narrow(dim, 2 * reach - g, size) for g, part in enumerate(parts)]
    return torch.cat([part.narrow(5 - dim, reach, x.shape[5 - dim]) for part in moved], 1)


@pytest.mark.parametrize("dim", [2, 3])
def test_channels_shifted_in_groups_are_one_depthwise_convolution(dim: int) -> None:
    result = prove(Net(lambda _, x: _shifted(x, 3, dim)), (8, 4, 5))
    assert fired(result)["convolve_shifts"] == 1
    assert list(targets(result)) == [aten.conv2d.default]


def test_shifted_channels_in_another_order_need_a_convolution_behind() -> None:
    result = prove(Net(lambda m, x: m.conv(_cycled(x)), conv=nn.Conv2d(7, 4, 1)), (7, 4, 5))
    assert fired(result)["convolve_shifts"] == 1
    assert not CUTS & set(targets(result))
