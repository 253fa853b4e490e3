"""A network that can be traced keeps its batch free; one that cannot gives one clear line that says where."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mlpdeploy.errors import NetworkError
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.place import network_of
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from tests.graph.proof import Wrapped, assert_same, prove, randomised, specs, targets

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
    assert f"module '{'body.1' if wrapped else '(root)'}' (test_trace.py, line {_marked(kind)})" in text


def test_names_the_line_of_a_function_and_the_module_that_called_it(capfd: pytest.CaptureFixture[str]) -> None:
    text = _message(Wrapped(ByAFunction()), capfd)
    assert f"module 'body.1' (test_trace.py, line {_marked(_by_a_function, '# function')})" in text


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
    assert "trace.py, line" not in text


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
    assert f"writes into '{what}', in module '(root)' (test_trace.py, line {_marked(kind)})" in text


# What can be traced.


class Many(nn.Module):
    """Two inputs of other shapes, a keyword with a default, and a nested result."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, y: Tensor, *, scale: float = 2.0) -> dict[str, Tensor | list[Tensor]]:
        return {"sum": x + self.layer(y)[:, None], "parts": [y * scale, x.mean((1, 2))]}


def test_several_inputs_and_nested_outputs() -> None:
    result = prove(Many(), (3, 4), (4,))
    assert [spec.shape for spec in result.inputs] == [(3, 4), (4,)]
    assert [(spec.name, spec.shape) for spec in result.outputs] == [
        ("sum", (3, 4)),
        ("parts.0", (4,)),
        ("parts.1", ()),
    ]
    placeholders = [node.name for node in result.module.graph.nodes if node.op == "placeholder"]
    assert placeholders == ["input_0", "input_1"]


class Named(NamedTuple):
    logits: Tensor
    features: Tensor


class Returns(nn.Module):
    def __init__(self, what: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> Any:
        return self.what(x.exp())


@pytest.mark.parametrize(
    ("what", "names", "mapping"),
    [
        (lambda x: x, ["output"], False),
        (lambda x: (x, x + 1), ["output_0", "output_1"], False),
        (lambda x: [x, (x + 1, x + 2)], ["output_0", "output_1", "output_2"], False),
        (lambda x: {"logits": x}, ["logits"], True),
        (lambda x: {"z": x, "a": x + 1}, ["z", "a"], True),
        (lambda x: Named(x, x + 1), ["logits", "features"], False),
        (lambda x: (x, {"aux": x + 1}), ["0", "1.aux"], False),
        (lambda x: {"aux loss": x, 3: x + 1}, ["aux_loss", "3"], True),
        (lambda x: {"a b": x, "a/b": x + 1}, ["output_0", "output_1"], True),  # names that would be the same
        (lambda x: {"x": x}, ["x_of_network"], True),  # the input's name
        (lambda x: (x, None), ["output"], False),
        (lambda x: {"loss": None, "logits": x, "more": [None, x + 1]}, ["logits", "more.1"], True),
    ],
)
def test_outputs_are_called_as_the_network_calls_them(what: Any, names: list[str], mapping: bool) -> None:
    found = trace(Returns(what), [TensorSpec("x", (4,), torch.float32)])
    assert [spec.name for spec in found.outputs] == names and found.mapping == mapping


def test_batch_stays_symbolic_everywhere() -> None:
    traced = trace(Wrapped(nn.Linear(6, 5)), [TensorSpec("image", SHAPE, torch.float32)])
    for node in traced.module.graph.nodes:
        if node.op == "placeholder" or (node.op == "call_function" and node.all_input_nodes):
            assert isinstance(node.meta["val"].shape[0], torch.SymInt), node
    linear = next(node for node in traced.module.graph.nodes if node.target is torch.ops.aten.linear.default)
    assert network_of(linear) == "body.1"
    assert traced.outputs == (TensorSpec("output", (4, 5), torch.float32),)


class ReshapedToTwo(nn.Module):
    """Torch guards the reshape against batch 2, as a shortcut; the network takes every batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1).tanh().reshape(x.shape)


def test_a_shortcut_of_torch_is_no_restriction() -> None:
    prove(ReshapedToTwo(), SHAPE, batches=(1, 2, 3, 4, 5))


class InPlace(nn.Module):
    """Writes into its own intermediate results, through views and not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(4)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, 0] = 0.5
        y.mT[:, 1:3].mul_(2)
        y += self.act(self.norm(self.layer(y)))
        return y.transpose(1, 2)


def test_operations_in_place_become_functional() -> None:
    network = randomised(InPlace())
    traced = trace(network, specs([SHAPE]))
    for node in traced.module.graph.nodes:
        assert (
            node.op != "call_function"
            or not getattr(node.target, "_schema", None)
            or not node.target._schema.is_mutable
        )
    assert_same(network, rewrite(traced), [SHAPE])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(6, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.mT.contiguous().mT)[0]


def test_operations_with_several_results_run_as_they_are() -> None:
    result = prove(Recurrent(), SHAPE)
    assert targets(result)[torch.ops.aten.lstm.input] == 1


def test_tracing_leaves_the_network_as_it_was() -> None:
    network = Wrapped(nn.Linear(6, 5))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    traced = trace(network, [TensorSpec("image", SHAPE, torch.float32)])
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not any(parameter.requires_grad for parameter in traced.module.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    weight = next(parameter for parameter in traced.module.parameters() if parameter.dim() == 2)
    assert weight.data_ptr() == network.body[1].weight.data_ptr()
