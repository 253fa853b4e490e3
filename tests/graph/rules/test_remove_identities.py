"""Operations that do nothing, in every spelling, and those that look like it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.proof import aten, prove, targets
from tests.graph.rules.examples import Example, NearMiss, Tokens

Forward = Callable[[Tensor], Tensor]

EXAMPLE = Example(Tokens, (6, 4), fires=1)


class Net(nn.Module):
    """`forward_` between two linears over 4 elements."""

    def __init__(self, forward_: Forward) -> None:
        super().__init__()
        self.forward_, self.first, self.last = forward_, nn.Linear(4, 4), nn.LazyLinear(3)
        self.last(forward_(torch.zeros(2, 6, 4)))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.forward_(self.first(x)))


def near_miss(forward: Forward) -> NearMiss:
    return NearMiss(lambda: Net(forward), (6, 4), holds=lambda result: targets(result).total() > 2)


NEAR_MISSES = {
    "a slice of a part": near_miss(lambda x: aten.slice.Tensor(x, 1, 1)),
    "a slice of all but the last": near_miss(lambda x: aten.slice.Tensor(x, 1, 0, -1)),
    "every second": near_miss(lambda x: aten.slice.Tensor(x, 1, 0, 6, 2)),
    "every second, then all, cut to as many": near_miss(lambda x: torch.cat([x[:, ::2], x], 1)[:, :6] * 2),
    "a concatenation with itself": near_miss(lambda x: torch.cat([x, x], 2)),
    "padding": near_miss(lambda x: F.pad(x, (0, 1))),
    "another dtype": near_miss(lambda x: x.to(torch.float16).sin().to(x.dtype)),
}


NOTHING: dict[str, Forward] = {
    "whole slices": lambda x: x[:, :, :],
    "a slice to the end": lambda x: x[:, 0:6],
    "a slice beyond the end": lambda x: x[:, :100],
    "a slice from far before": lambda x: x[:, -100:],
    "a concatenation of one": lambda x: torch.cat([x], 1),
    "a clone": lambda x: x.clone(),
}


@pytest.mark.parametrize("name", NOTHING)
def test_goes(name: str) -> None:
    assert targets(prove(Net(NOTHING[name]), (6, 4))) == {aten.linear.default: 2}


def test_a_slice_of_a_part_stays_and_the_copy_of_it_goes() -> None:
    left = targets(prove(Net(lambda x: x[:, 1:].contiguous()), (6, 4)))
    assert left == {aten.linear.default: 2, aten.slice.Tensor: 1}
