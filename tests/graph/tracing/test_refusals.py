"""What a network may not do is one clear line, with the module and the line of code that did it."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
from torch import Tensor, nn

from mlpdeploy.errors import NetworkError
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from tests.graph.proof import Wrapped

SHAPE = (4, 6)


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # here
            return x
        return -x


class Item(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean().item()  # here


class ItemAsSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, : int(x.mean().item())]  # here


class Selected(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0]  # here


class FloatArithmetic(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        batch = int(x.shape[0] * 4 / 4)  # here
        return x.reshape(batch, -1)


def _by_a_function(x: Tensor) -> Tensor:
    return x.reshape(int(x.shape[0] * 4 / 4), 24)  # function


class ByAFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _by_a_function(x)


class FixedByReshape(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(3, 24)  # here


class FixedByParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(3, *SHAPE))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.offset  # here


class FixedByLoop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[index] + 1 for index in range(x.shape[0])])  # here


class Modulo(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.shape[0] % 3 == 0 else 2 * x  # here


class Frames(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 3, *SHAPE).flatten(0, 1)  # here


class SmallBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 2:  # here
            return x + 1
        return x


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError(f"expected 7 channels,\ngot {x.shape[1]}")  # here


class Mismatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # here


class LeavesTorch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy()) + x  # here


VALUES = "values of a tensor"
SOME = "works only for some batch sizes"
CANNOT: list[tuple[type[nn.Module], str]] = [
    (Branch, VALUES),
    (Item, VALUES),
    (ItemAsSize, VALUES),
    (Selected, VALUES),
    (FloatArithmetic, SOME),
    (FixedByReshape, SOME),
    (FixedByParameter, SOME),
    (FixedByLoop, SOME),
    (Modulo, SOME),
    (Frames, SOME),
    (SmallBatch, SOME),
    (Raises, "ValueError: expected 7 channels,"),
    (Mismatch, "RuntimeError"),
    (LeavesTorch, "RuntimeError"),
]


def _marked(thing: object, mark: str = "# here") -> int:
    """Line of this file that is marked in the source of `thing`."""
    lines, first = inspect.getsourcelines(thing)  # type: ignore[arg-type]
    return next(first + index for index, line in enumerate(lines) if mark in line)


def _message(network: nn.Module, capfd: pytest.CaptureFixture[str]) -> str:
    """The one line of a failing trace, which must be all that anybody sees."""
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as seen, pytest.raises(NetworkError) as caught:
        warnings.simplefilter("always")
        trace(network, [TensorSpec("image", SHAPE, torch.float32)])
    assert capfd.readouterr() == ("", "")
    assert not seen
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(("kind", "reason"), CANNOT, ids=[kind.__name__ for kind, _ in CANNOT])
@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "wrapped"])
def test_names_the_module_and_the_line(
    kind: type[nn.Module], reason: str, wrapped: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    text = _message(Wrapped(kind()) if wrapped else kind(), capfd)
    assert reason in text
    assert f"module '{'body.1' if wrapped else '(root)'}' (test_refusals.py, line {_marked(kind)})" in text


def test_names_the_line_of_a_function_and_the_module_that_called_it(capfd: pytest.CaptureFixture[str]) -> None:
    text = _message(Wrapped(ByAFunction()), capfd)
    assert f"module 'body.1' (test_refusals.py, line {_marked(_by_a_function, '# function')})" in text


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0)


class Total(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean()


class OfTwo(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


class WithNumber(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return x, 3


class WithBatch(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return x, x.shape[0]


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> None:
        return None


class Weight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, self.table


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1  # here
        return x * self.calls


class WritesInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x += 1  # here
        return x


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


UNFIT: list[tuple[type[nn.Module], str]] = [
    (Mean, "first axis is not the batch"),
    (Total, "first axis is not the batch"),
    (OfTwo, "first axis is not the batch"),
    (Weight, "output_1 of the network has shape (1, 3): its first axis is not the batch"),
    (WithNumber, "the network must return tensors (a tensor, or a tuple, list or dict of tensors), not 3"),
    (WithBatch, "the network must return tensors (a tensor, or a tuple, list or dict of tensors)"),
    (Nothing, "the network must return tensors (a tensor, or a tuple, list or dict of tensors)"),
    (TwoInputs, "cannot trace TwoInputs: TypeError: missing a required argument: 'y'"),
]


@pytest.mark.parametrize(("kind", "reason"), UNFIT, ids=[kind.__name__ for kind, _ in UNFIT])
def test_refuses_what_is_no_batched_function(
    kind: type[nn.Module], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    text = _message(kind(), capfd).replace("'x'", "'image'")
    assert reason in text
    assert ".py, line" not in text


class WritesView(Counts):
    def forward(self, x: Tensor) -> Tensor:
        first = self.calls[:1]
        first.mul_(2)  # here
        return x + self.calls


@pytest.mark.parametrize(("kind", "what"), [(Counts, "calls"), (WritesInput, "image"), (WritesView, "calls")])
def test_names_the_line_that_writes_into_an_input_or_a_buffer(
    kind: type[nn.Module], what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    text = _message(kind(), capfd).replace("'x'", "'image'")
    assert f"writes into '{what}', in module '(root)' (test_refusals.py, line {_marked(kind)})" in text
