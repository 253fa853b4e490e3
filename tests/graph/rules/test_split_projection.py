"""Projections whose results are cut apart, convolutions above all, and what looks like that and is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.proof import aten, fired, prove, reasons, targets

Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """`forward_` on (b, 4, 5, 6), with convolutions to 6 channels."""

    def __init__(self, forward_: Forward) -> None:
        super().__init__()
        self.forward_ = forward_
        self.point, self.bare = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 3, 2, 1, bias=False)
        self.grouped, self.line = nn.Conv2d(4, 6, 1, groups=2), nn.Linear(6, 7)
        self.norm, self.place = nn.BatchNorm2d(6), nn.Parameter(torch.empty(6, 5, 6))
        self.edge = nn.Parameter(torch.empty(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_(self, x)


def joined(y: Tensor) -> Tensor:
    """The two halves, each its own way, so that nothing can put them together again."""
    return y[:, :2].sin().mean(1) + y[:, 2:].exp().mean(1)


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: joined(net.point(x)),
        lambda net, x: joined(F.gelu(net.norm(net.bare(x)))),
        lambda net, x: joined(F.gelu(net.point(x)) + net.place),
        lambda net, x: joined(F.gelu(net.point(x)) + net.edge),
        lambda net, x: (y := net.point(x).split((2, 4), 1))[0].sin().mean(1) + y[1].exp().mean(1),
        lambda net, x: (y := net.point(x).chunk(3, 1))[0].sin() + y[1].exp() * y[2],
        lambda net, x: (y := net.point(x))[:, 4:].sin() + y[:, 1:3].exp(),
        lambda net, x: net.point(x)[:, :2].sin(),
        lambda net, x: (y := net.point(x))[:, :2].sin() + y[:, :2].exp() * y[:, 2:4],
        lambda net, x: (y := net.line(x))[..., 2:].sin().sum(-1) + y[..., :2].exp().sum(-1),
    ],
    ids=[
        "slices",
        "norm, no bias",
        "a map",
        "an edge",
        "split",
        "chunk",
        "in another order, not all",
        "one of them",
        "one twice",
        "of a linear",
    ],
)
def test_each_part_has_its_projection(forward: Forward) -> None:
    result = prove(Net(forward), (4, 5, 6))
    assert fired(result)["split_projection"] == 1
    left = targets(result)
    assert left[aten.conv2d.default] + left[aten.linear.default] in (1, 2, 3)
    assert not left.keys() & {aten.slice.Tensor, aten.split_with_sizes.default, aten.chunk.default}


@pytest.mark.parametrize(
    ("forward", "why"),
    [
        (lambda net, x: joined(net.grouped(x)), ["it is a grouped convolution"]),
        (lambda net, x: (y := net.point(x))[:, :4].sin() + y[:, 2:].exp(), ["its parts overlap"]),
        (lambda net, x: joined(y := net.point(x)) + y.amax(1), ["the whole result is used as well"]),
        (lambda net, x: (y := net.point(x))[:, ::2].sin() + y[:, 1::2].exp(), []),
        (lambda net, x: (y := net.point(x))[:, :, :3].sin() + y[:, :, 2:].exp(), []),
        (lambda net, x: joined(net.point(x) * x.mean(1, keepdim=True)), []),
        (lambda net, x: joined((y := net.point(x)).sin() + y), []),
    ],
    ids=["grouped", "overlap", "all is read", "strides", "rows", "two activations", "read twice"],
)
def test_near_misses_stay(forward: Forward, why: list[str]) -> None:
    result = prove(Net(forward), (4, 5, 6))
    assert (fired(result)["split_projection"], reasons(result, "split_projection")) == (0, why)
