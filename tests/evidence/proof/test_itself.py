"""A network is one function of each row, or one line says which operation makes it another thing."""

from __future__ import annotations

import inspect
import random
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlpdeploy.errors import NetworkError
from mlpdeploy.evidence.proof.itself import check
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from tests.graph.proof import Wrapped

X = TensorSpec("x", (8,), torch.float32)


class Net(nn.Module):
    """(b, 8) to (b, 4); the networks below do something to what lies between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(F.gelu(self.a(x))))

    def between(self, x: Tensor) -> Tensor:
        return x


class HardDropout(Net):
    def between(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)  # here


class Noise(Net):
    def between(self, x: Tensor) -> Tensor:
        return x + 1e-6 * torch.randn_like(x)  # here


class DropPath(Net):
    """Drops a row in twenty."""

    def between(self, x: Tensor) -> Tensor:
        return x * (torch.rand(x.shape[0], 1) < 0.95)  # here


class PythonRandom(Net):
    def between(self, x: Tensor) -> Tensor:
        return x * random.random()  # here


class NumpyRandom(Net):
    def between(self, x: Tensor) -> Tensor:
        return x + float(np.random.rand())  # here


class Counts(Net):
    calls = 0

    def between(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls  # here


class Grumbles(Net):
    calls = 0

    def between(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError("once is enough")  # here
        return x


class Leaves(Grumbles):
    def between(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 1:
            sys.exit(0)  # here
        return x


class Mean(Net):
    def between(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)  # here


class Softmax(Net):
    def between(self, x: Tensor) -> Tensor:
        return x.softmax(0)  # here


class Sorted(Net):
    def between(self, x: Tensor) -> Tensor:
        return x.sort(0).values  # here


class Flipped(Net):
    def between(self, x: Tensor) -> Tensor:
        return x.flip(0)  # here


class Sums(Net):
    def between(self, x: Tensor) -> Tensor:
        return x.cumsum(0)  # here


class Largest(Net):
    def between(self, x: Tensor) -> Tensor:
        return x / x.abs().max()  # here


class Heads(Net):
    """The batch is merged with another axis, on its inside, before the rows meet."""

    def between(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, 4, 4).transpose(0, 1).reshape(-1, 4)
        x = x - x.mean(0, keepdim=True)  # here
        return x.reshape(4, -1, 4).transpose(0, 1).reshape(-1, 16)


class Statistics(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16, track_running_stats=False)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x)  # here


class Statistics2d(Statistics):
    """With numbers enough in one row, which a BatchNorm takes alone too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4, track_running_stats=False)

    def between(self, x: Tensor) -> Tensor:
        return self.norm(x.reshape(-1, 4, 4)).flatten(1)  # here


class Size(Net):
    def between(self, x: Tensor) -> Tensor:
        return x * x.shape[0]  # here


class Kept(Net):
    """Keeps from its first call what rows it had."""

    mask: Any = None

    def between(self, x: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = x.mean(0) > 0.1  # here
        return x * self.mask


class Squeezed(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()  # here


class Overlap(Net):
    def between(self, x: Tensor) -> Tensor:
        x.as_strided((x.shape[0], 15, 2), (16, 1, 1)).add_(1.0)  # here
        return x


class Exporting(Net):
    def between(self, x: Tensor) -> Tensor:
        return x if torch.compiler.is_exporting() else x.tanh()  # here


class NoNumber(Net):
    def between(self, x: Tensor) -> Tensor:
        return (x.relu() - 1).log()  # here


class Infinite(Net):
    def between(self, x: Tensor) -> Tensor:
        return x / 0.0  # here


AGAIN = "gives something else each time that it runs on the same rows"
ROWS = "lets a row depend on the others in its batch"
STRAYS = "computes something else than its trace"
AXIS = "let it work along another axis than the first, which is the batch"
DRAWN = "leave it out unless self.training, or draw the numbers once and keep them as a buffer"
STATE = "keep nothing from one call to the next: compute it from the input"
FAULTS: list[tuple[type[nn.Module], str, str]] = [
    (HardDropout, f"{AGAIN}: dropout draws random numbers", DRAWN),
    (Noise, f"{AGAIN}: randn_like draws random numbers", DRAWN),
    (DropPath, f"{AGAIN}: rand draws random numbers", DRAWN),
    (PythonRandom, f"{AGAIN}: mul does first", STATE),
    (NumpyRandom, f"{AGAIN}: add does first", STATE),
    (Counts, f"{AGAIN}: mul does first", STATE),
    (Grumbles, "fails when it runs again: RuntimeError: once is enough", ""),
    (Leaves, "fails when it runs again: SystemExit: 0", ""),
    (Mean, f"{ROWS}: mean mixes them", AXIS),
    (Softmax, f"{ROWS}: softmax mixes them", AXIS),
    (Sorted, f"{ROWS}: sort mixes them", AXIS),
    (Flipped, f"{ROWS}: flip mixes them", AXIS),
    (Sums, f"{ROWS}: cumsum mixes them", AXIS),
    (Largest, f"{ROWS}: max mixes them", AXIS),
    (Heads, f"{ROWS}: mean mixes them", AXIS),
    (Statistics, "fails at batch 1: ValueError: Expected more than 1 value per channel", "(track_running_stats=True)"),
    (Statistics2d, f"{ROWS}: batch_norm takes the batch's own statistics", "(track_running_stats=True)"),
    (Size, f"{ROWS}: mul depends on the number of rows", "not with how many rows there are"),
    (Kept, f"{ROWS}: mean mixes them", AXIS),
    (Squeezed, "gives (4,) instead of (1, 4) at batch 1: squeeze drops the batch axis", "such as squeeze(-1)"),
    (Overlap, f"{STRAYS}: add first", "without in-place operations on views"),
    (Exporting, f"{STRAYS}: linear first", "without state in Python"),
    (NoNumber, "gives NaN or infinity for ordinary rows in its output 'output': log gives it first", "clamp or + eps"),
    (Infinite, "gives NaN or infinity for ordinary rows in its output 'output': div gives it first", "clamp or + eps"),
]


def line_of(kind: type[nn.Module]) -> int:
    """Line of this file that is marked in the source of a network."""
    lines, first = inspect.getsourcelines(kind)
    return next(first + index for index, line in enumerate(lines) if "# here" in line)


def checked(network: nn.Module, spec: TensorSpec = X) -> tuple[str, ...]:
    network = network.eval().requires_grad_(False)
    return check(network, trace(network, [spec]), 0)


def said(network: nn.Module) -> str:
    with pytest.raises(NetworkError) as caught:
        checked(network)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "wrapped"])
@pytest.mark.parametrize(("kind", "what", "instead"), FAULTS, ids=[kind.__name__ for kind, *_ in FAULTS])
def test_names_the_operation_its_line_and_what_to_write(
    kind: type[nn.Module], what: str, instead: str, wrapped: bool
) -> None:
    torch.manual_seed(0)
    text = said(Wrapped(kind()) if wrapped else kind())
    path = "body.1" if wrapped else ""
    if kind is Statistics2d:
        path = f"{path}.norm".removeprefix(".")
    if kind is Exporting:  # where its values are first others than the network's
        path, line = f"{path}.b".removeprefix("."), inspect.getsourcelines(Net)[1] + 8
        place = f"module '{path}' (test_itself.py, line {line})"
    else:
        place = f"module '{path or '(root)'}' (test_itself.py, line {line_of(kind)})"
    assert what in text and place in text and instead in text


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
