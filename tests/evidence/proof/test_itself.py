"""Of a network that is no function of each row, one line says which operation makes it another thing."""

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
