"""Projections whose results are cut apart, convolutions above all, and what looks like that and is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpdeploy.graph.rewrite import Rewritten
from tests.graph.proof import aten, fired, prove, prove_twice, reasons, targets
from tests.graph.rules.examples import Example, Gated, NearMiss, Net

Forward = Callable[["Convolutions", Tensor], Tensor]

EXAMPLE = Example(Gated, (6, 4), fires=1)


class Convolutions(nn.Module):
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


def near_miss(forward: Forward, *why: str) -> NearMiss:
    return NearMiss(lambda: Convolutions(forward), (4, 5, 6), why)


def whole(result: Rewritten) -> bool:
    return not fired(result)["split_activation"] and not reasons(result, "split_activation")


def of_linear(run: Callable[[Net, Tensor], Tensor | tuple[Tensor, ...]], *why: str, width: int = 8) -> NearMiss:
    return NearMiss(lambda: Net(run, fc=nn.Linear(6, width)), (4, 6), why, holds=whole, twice=True)


NEAR_MISSES = {
    "grouped": near_miss(lambda net, x: joined(net.grouped(x)), "it is a grouped convolution"),
    "overlap": near_miss(lambda net, x: (y := net.point(x))[:, :4].sin() + y[:, 2:].exp(), "its parts overlap"),
    "all is read": near_miss(lambda net, x: joined(y := net.point(x)) + y.amax(1), "the whole result is used as well"),
    "strides": near_miss(lambda net, x: (y := net.point(x))[:, ::2].sin() + y[:, 1::2].exp()),
    "rows": near_miss(lambda net, x: (y := net.point(x))[:, :, :3].sin() + y[:, :, 2:].exp()),
    "two activations": near_miss(lambda net, x: joined(net.point(x) * x.mean(1, keepdim=True))),
    "read twice": near_miss(lambda net, x: joined((y := net.point(x)).sin() + y)),
    "a linear that all is read of": of_linear(
        lambda m, x: (torch.mul(*(y := m.fc(x)).chunk(2, -1)), y), "the whole result is used as well"
    ),
    "an activated linear that all is read of": NearMiss(
        lambda: Net(lambda m, x: (torch.mul(*(y := F.gelu(m.fc(x))).chunk(2, -1)), y), fc=nn.Linear(6, 8)),
        (4, 6),
        twice=True,
    ),
    "a linear, split along another dimension": of_linear(lambda m, x: torch.mul(*m.fc(x).chunk(2, 1))),
    "a linear, and a softmax before the split": of_linear(lambda m, x: torch.mul(*m.fc(x).softmax(-1).chunk(2, -1))),
    "a linear, and two activations meet": of_linear(lambda m, x: torch.mul(*(m.fc(x) + x).chunk(2, -1)), width=6),
}


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: joined(net.point(x)),
        lambda net, x: (y := net.point(x).split((2, 4), 1))[0].sin().mean(1) + y[1].exp().mean(1),
        lambda net, x: (y := net.point(x).chunk(3, 1))[0].sin() + y[1].exp() * y[2],
        lambda net, x: (y := net.point(x))[:, 4:].sin() + y[:, 1:3].exp(),
        lambda net, x: net.point(x)[:, :2].sin(),
        lambda net, x: (y := net.point(x))[:, :2].sin() + y[:, :2].exp() * y[:, 2:4],
        lambda net, x: (y := net.line(x))[..., 2:].sin().sum(-1) + y[..., :2].exp().sum(-1),
    ],
    ids=[
        "slices",
        "split",
        "chunk",
        "in another order, not all",
        "one of them",
        "one twice",
        "of a linear",
    ],
)
def test_each_part_has_its_projection(forward: Forward) -> None:
    parted(forward, "split_projection")


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: joined(F.gelu(net.norm(net.bare(x)))),
        lambda net, x: joined(F.gelu(net.point(x)) + net.place),
        lambda net, x: joined(F.gelu(net.point(x)) + net.edge),
    ],
    ids=["norm, no bias", "a map", "an edge"],
)
def test_each_activated_part_has_its_projection(forward: Forward) -> None:
    parted(forward, "split_activation")


def parted(forward: Forward, rule: str) -> None:
    result = prove(Convolutions(forward), (4, 5, 6))
    assert [fired(result)[name] for name in ("split_projection", "split_activation")] == [
        int(name == rule) for name in ("split_projection", "split_activation")
    ]
    left = targets(result)
    assert left[aten.conv2d.default] + left[aten.linear.default] in (1, 2, 3)
    assert not left.keys() & {aten.slice.Tensor, aten.split_with_sizes.default, aten.chunk.default}


def glu(m: Net, x: Tensor) -> Tensor:
    u, v = m.fc(x).chunk(2, -1)
    return u * torch.sigmoid(v)


def uneven(m: Net, x: Tensor) -> Tensor:
    u, v, w = (m.fc(x) * m.scale).split([1, 4, 3], -1)
    return torch.cat([u * v, w], -1)


def one_part(m: Net, x: Tensor) -> Tensor:
    return m.fc(x).split(3, -1)[1]


SPLITS = {
    "chunks of channels": (Net(glu, fc=nn.Linear(6, 8)), 2),
    "uneven parts of a scaled result": (Net(uneven, fc=nn.Linear(6, 8), scale=(8,)), 3),
    "one part of three": (Net(one_part, fc=nn.Linear(6, 8)), 1),
}


@pytest.mark.parametrize("name", SPLITS)
def test_each_part_of_a_linear_has_its_projection(name: str) -> None:
    network, parts = SPLITS[name]
    result = prove_twice(network, "split_projection", (5, 6))
    assert (fired(result)["split_projection"], fired(result)["split_activation"]) == (1, 0)
    found = targets(result)
    assert found[aten.linear.default] + found[aten.matmul.default] == parts
    assert not {aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default} & set(found)
