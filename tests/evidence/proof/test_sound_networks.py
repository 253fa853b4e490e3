"""What is a function of each row passes, and what is said of it all the same."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlpdeploy.errors import NetworkError
from mlpdeploy.evidence.proof.itself import check
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from tests.evidence.proof.test_itself import HardDropout, Net, NumpyRandom, PythonRandom, X, checked


class Unused(Net):
    def between(self, x: Tensor) -> Tensor:
        torch.rand(3)
        return x


class Recurrent(Net):
    """An operator that may draw numbers, and does not."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(4, 4, batch_first=True)

    def between(self, x: Tensor) -> Tensor:
        return self.cell(x.reshape(-1, 4, 4))[0].flatten(1)


class Grid(Net):
    """Keeps a constant from its first call."""

    grid: Any = None

    def between(self, x: Tensor) -> Tensor:
        if self.grid is None:
            self.grid = torch.arange(16) / 16
        return x + self.grid


class Masked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))

    def between(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, 4, 4)
        return ((tokens @ tokens.mT + self.mask).softmax(-1) @ tokens).flatten(1)


class InPlace(Net):
    def between(self, x: Tensor) -> Tensor:
        x -= x.mean(1, keepdim=True)
        x[:, 0] = 1
        return x.relu_()


class Halved(Net):
    def between(self, x: Tensor) -> Tensor:
        return x.half().softmax(1).float()


class Merged(Net):
    """Rows beside each other in one axis, and apart again."""

    def between(self, x: Tensor) -> Tensor:
        return torch.cat([x, 2 * x]).reshape(2, -1, 16).sum(0)


class Uncopied(Net):
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("no copies")


@pytest.mark.parametrize("kind", [Net, Unused, Recurrent, Grid, Masked, InPlace, Halved, Merged, Uncopied])
def test_what_is_a_function_of_each_row_passes(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    assert checked(kind()) == ()


class Constant(Net):
    def between(self, x: Tensor) -> Tensor:
        return 0 * x


def test_an_output_that_is_the_same_for_every_row_is_told() -> None:
    (note,) = checked(Constant())
    assert note.startswith("output 'output' of the network is the same for every input")


class Log(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.abs().sum(1, keepdim=True).log()


class Table(Net):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.table((2 * x[:, 0].abs()).long())


def test_what_the_network_itself_makes_of_extreme_rows_is_told() -> None:
    assert checked(Log()) == (
        "output 'output' of the network itself is not finite for the row 'zeros': nothing is asked of an engine there",
    )
    assert checked(Table()) == (
        "the network itself raises IndexError for the row '100 times larger': nothing is asked of an engine there",
    )


def test_the_network_and_the_random_numbers_stay_as_they_were() -> None:
    network = Grid().eval()
    draws = [HardDropout().eval(), NumpyRandom().eval(), PythonRandom().eval()]
    traces = [trace(one, [X]) for one in (network, *draws)]
    before = (torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    check(network, traces[0], 0)
    for one, traced in zip(draws, traces[1:], strict=True):
        with pytest.raises(NetworkError):
            check(one, traced, 0)
    assert network.grid is None
    assert torch.equal(torch.random.get_rng_state(), before[0]) and random.getstate() == before[2]
    assert (np.random.get_state()[1] == before[1]).all()


def test_integers_that_may_be_anything_are_not_tried() -> None:
    class Ids(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float() * 2

    (note,) = checked(Ids(), TensorSpec("ids", (3,), torch.int64))
    assert "nothing says which values input 'ids' can have" in note
