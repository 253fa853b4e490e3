"""A network that can be traced keeps its batch free, and its inputs and outputs are called as its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.place import network_of
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from tests.graph.proof import Wrapped, assert_same, prove, randomised, specs, targets

SHAPE = (4, 6)


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
