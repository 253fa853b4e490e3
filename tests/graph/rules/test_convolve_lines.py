"""Convolutions of lines that lie in front of the channels, and what looks like that and is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor, nn

from mlpdeploy.zoo.strip_mlp import StripBlock
from tests.graph.proof import aten, fired, prove, reasons, targets
from tests.graph.rules.examples import Example, NearMiss

Forward = Callable[["Net", Tensor], Tensor]
SHAPE = (3, 4, 5)

EXAMPLE = Example(lambda: StripBlock(16, 5), (16, 5, 5), fires=2)


class Net(nn.Module):
    """`forward_` on (b, 3, 4, 5), with convolutions of 4 channels of several kernels."""

    def __init__(self, forward_: Forward) -> None:
        super().__init__()
        self.forward_ = forward_
        self.wide = nn.Conv2d(4, 6, (1, 3), padding=(0, 1), groups=2)
        self.short = nn.Conv2d(4, 4, (1, 3), stride=(1, 2), dilation=(1, 2), padding=(0, 1), bias=False)
        self.high = nn.Conv2d(4, 6, (3, 1), padding=(1, 0))
        self.square = nn.Conv2d(4, 4, 3, padding=1)
        self.point = nn.Conv2d(4, 4, 1)
        self.padded = nn.Conv2d(4, 4, (1, 3), padding=1)
        self.strided = nn.Conv2d(4, 4, (1, 3), stride=(2, 1), padding=(0, 1))
        self.norm = nn.LayerNorm(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_(self, self.norm(x))


def near_miss(forward: Forward, *why: str) -> NearMiss:
    return NearMiss(lambda: Net(forward), SHAPE, why)


NEAR_MISSES = {
    "both dimensions": near_miss(lambda net, x: net.square(x.transpose(1, 2)).transpose(1, 2)),
    "neither": near_miss(lambda net, x: net.point(x.transpose(1, 2)).transpose(1, 2)),
    "padded lines": near_miss(lambda net, x: net.padded(x.transpose(1, 2)).transpose(1, 2)),
    "skipped lines": near_miss(lambda net, x: net.strided(x.transpose(1, 2)).transpose(1, 2)),
    "channels in front": near_miss(lambda net, x: net.wide(x.reshape(-1, 4, 3, 5))),
    "another source": near_miss(lambda net, x: net.wide(x.transpose(1, 2).exp().flip(1)).transpose(1, 2)),
    "a result that is wanted otherwise": near_miss(
        lambda net, x: net.wide(x.transpose(1, 2)),
        "its lines lie in front of the channels, and its result is wanted otherwise",
    ),
}


def prove_lines(forward: Forward) -> tuple[int, int, list[str]]:
    """How often the rule fired, the permutations left, and why it refused."""
    result = prove(Net(forward), SHAPE)
    return fired(result)["convolve_lines"], targets(result)[aten.permute.default], reasons(result, "convolve_lines")


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.wide(x.transpose(1, 2)).transpose(1, 2),
        lambda net, x: net.short(x.permute(0, 2, 1, 3)).permute(0, 2, 1, 3),
        lambda net, x: net.high(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        lambda net, x: net.wide(x.transpose(1, 2)).transpose(1, 2).flatten(1, 2),
    ],
    ids=["grouped", "strided and dilated", "along the height", "flattened"],
)
def test_lines_go_into_the_batch(forward: Forward) -> None:
    assert prove_lines(forward) == (1, 0, [])


def test_a_map_that_is_turned_is_only_turned() -> None:
    """Strip-MLP's rows: the width becomes the channels, groups stay in front."""

    def rows(net: Net, x: Tensor) -> Tensor:
        y = x.reshape(-1, 3, 2, 2, 5).permute(0, 2, 3, 1, 4).flatten(1, 2)
        return net.wide(y).unflatten(1, (2, 3)).permute(0, 3, 1, 2, 4).flatten(2, 3)

    assert prove_lines(rows) == (1, 0, [])
