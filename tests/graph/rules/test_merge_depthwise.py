"""Depthwise convolutions of groups that become one, and what looks like that and is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mlpdeploy.zoo.ms_mlp import MixShiftBlock
from tests.graph.proof import aten, fired, prove, targets
from tests.graph.rules.examples import Example, NearMiss

Forward = Callable[["Net", Tensor], Tensor]
SHAPE = (7, 5, 6)
Kernels = tuple[tuple[int, int], ...]

EXAMPLE = Example(lambda: MixShiftBlock(9, (1, 3, 3, 5, 5), 2), (9, 4, 5), fires=2)


class Net(nn.Module):
    """`forward_` on (b, 7, 5, 6), with depthwise convolutions of 3, 2 and 2 channels of any kernels."""

    def __init__(self, forward_: Forward, kernels: Kernels = ((3, 3), (1, 5), (5, 5))) -> None:
        super().__init__()
        self.forward_ = forward_
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, kernel, padding=(kernel[0] // 2, kernel[1] // 2), groups=width, bias=width == 3)
            for width, kernel in zip((3, 2, 2), kernels, strict=True)
        )
        self.strided = nn.Conv2d(2, 2, 3, padding=1, groups=2, stride=2)
        self.dense = nn.Conv2d(2, 2, 3, padding=1)
        self.dilated = nn.Conv2d(2, 2, 3, padding=1, groups=2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_(self, x)

    def mixed(self, parts: tuple[Tensor, ...]) -> list[Tensor]:
        """The i-th convolution of the i-th part."""
        return [conv(part) for conv, part in zip(self.convs, parts, strict=True)]


def split(x: Tensor) -> tuple[Tensor, ...]:
    return x.split((3, 2, 2), 1)


def moved(x: Tensor, dim: int) -> tuple[Tensor, ...]:
    return tuple(part.roll(distance, dim) for part, distance in zip(split(x), (-1, 0, 2), strict=True))


def both(x: Tensor) -> tuple[Tensor, ...]:
    a, b, c = split(x)
    return a.roll(1, 2).roll(-2, 3), b.roll((2, 1), (2, 3)), c


def near_miss(forward: Forward, *why: str, kernels: Kernels = ((3, 3), (1, 5), (5, 5))) -> NearMiss:
    return NearMiss(lambda: Net(forward, kernels), SHAPE, why)


def joined(net: Net, x: Tensor) -> Tensor:
    return torch.cat(net.mixed(split(x)), 1)


NEAR_MISSES = {
    "another order": near_miss(lambda net, x: torch.cat(net.mixed(split(x))[::-1], 1)),
    "a group is missing": near_miss(lambda net, x: torch.cat(net.mixed(split(x))[:2], 1)),
    "a group is not convolved": near_miss(lambda net, x: torch.cat([*net.mixed(split(x))[:2], split(x)[2]], 1)),
    "a group is mixed": near_miss(lambda net, x: torch.cat([*net.mixed(split(x))[:2], net.dense(split(x)[2])], 1)),
    "a group is changed": near_miss(
        lambda net, x: torch.cat([*net.mixed(split(x))[:2], net.convs[2](split(x)[2].exp())], 1)
    ),
    "another source": near_miss(
        lambda net, x: torch.cat([*net.mixed(split(x))[:2], net.convs[2](split(x.exp())[2])], 1)
    ),
    "what is joined is changed": near_miss(
        lambda net, x: torch.cat([one.mean((2, 3)) for one in net.mixed(split(x))], 1)
    ),
    "a result is read twice": near_miss(lambda net, x: torch.cat((y := net.mixed(split(x))), 1) + y[0].mean()),
    "a group is read twice": near_miss(lambda net, x: torch.cat([net.convs[1](x[:, 3:5]), net.convs[2](x[:, 3:5])], 1)),
    "joined along the height": near_miss(
        lambda net, x: torch.cat([net.convs[1](x[:, 3:5]), net.convs[2](x[:, 5:])], 2)
    ),
    "strided": near_miss(lambda net, x: torch.cat([net.strided(x[:, :2]), net.strided(x[:, 2:4])], 1)),
    "dilated": near_miss(lambda net, x: torch.cat([net.dilated(x[:, :2]), net.dilated(x[:, 2:4])], 1)),
    "small kernels, but for different dimensions": near_miss(
        joined, "one kernel for all has 14.5 times the products", kernels=((1, 1), (1, 9), (9, 1))
    ),
    "even kernels": near_miss(joined, kernels=((2, 2), (2, 2), (2, 2))),
}


@pytest.mark.parametrize(
    ("forward", "gathers", "flat"),
    [
        (lambda net, x: torch.cat(net.mixed(split(x)), 1), 0, None),
        (lambda net, x: torch.cat(net.mixed(moved(x, 2)), 1), 1, 7 * 5),
        (lambda net, x: torch.cat(net.mixed(moved(x, 3)), -3), 1, 7 * 5 * 6),
        (lambda net, x: torch.cat(net.mixed(both(x)), 1), 1, 7 * 5 * 6),
        (lambda net, x: torch.cat(net.mixed((x[:, :3], x[:, 3:5], x[:, -2:].flip(0))), 1), 0, None),
    ],
    ids=["only kernels differ", "along the height", "along the width", "along both", "one that is flipped"],
)
def test_groups_become_one_convolution(forward: Forward, gathers: int, flat: int | None) -> None:
    result = prove(Net(forward), SHAPE)
    flipped = aten.flip.default in targets(result)
    assert fired(result)["merge_depthwise"] == (not flipped)
    assert targets(result)[aten.conv2d.default] == (3 if flipped else 1)
    assert targets(result)[aten.index_select.default] == gathers
    if flat is not None:
        (gather,) = (n for n in result.module.graph.nodes if n.target is aten.index_select.default)
        assert gather.args[0].meta["val"].shape[1] == flat


def test_rolls_that_no_other_rule_read_are_read() -> None:
    forward: Forward = lambda net, x: torch.cat(net.mixed(moved(x, 3)), 1)  # noqa: E731
    assert fired(prove(Net(forward), SHAPE, disabled=("gather_shifts",)))["merge_depthwise"] == 1
