"""Operations that do nothing, in every spelling, and those that look like it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.graph.proof import aten, prove, targets

Forward = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """`forward_` between two linears over 4 elements."""

    def __init__(self, forward_: Forward) -> None:
        super().__init__()
        self.forward_, self.first, self.last = forward_, nn.Linear(4, 4), nn.LazyLinear(3)
        self.last(forward_(torch.zeros(2, 6, 4)))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.forward_(self.first(x)))


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


SOMETHING: dict[str, Forward] = {
    "a slice of a part": lambda x: x[:, 1:].contiguous(),
    "every second": lambda x: torch.cat([x[:, ::2], x], 1)[:, :6] * 2,
    "a concatenation with itself": lambda x: torch.cat([x, x], 2),
}


@pytest.mark.parametrize("name", SOMETHING)
def test_stays(name: str) -> None:
    assert targets(prove(Net(SOMETHING[name]), (6, 4))).total() > 2
