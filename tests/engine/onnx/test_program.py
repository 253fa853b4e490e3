"""A typed graph as a program: what the exporter writes of it is what it writes of the graph's own export."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpdeploy.engine.onnx.program import ORIGIN, Whole, program
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import Typed, apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace


class Block(nn.Module):
    """Weights that are read twice and lie in modules, a norm with statistics, a cast, an input called `input`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.GELU())
        self.register_buffer("steps", torch.arange(6.0))

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        x = self.layers(self.layers(input)) + self.steps
        return x, F.softmax(x * self.steps, dim=-1, dtype=torch.float64).to(torch.float32)


def typed(network: nn.Module, precision: str = "fp16") -> Typed:
    rewritten = rewrite(trace(network.eval(), [TensorSpec("input", (6,), torch.float32)]))
    return apply(rewritten, plan(rewritten, precision))


def of(module: torch.fx.GraphModule, has_form: bool = True) -> torch.export.ExportedProgram:
    return program(module, lambda _: has_form)


def test_it_computes_what_the_graph_computes_at_every_batch() -> None:
    torch.manual_seed(0)
    graph = typed(Block()).module
    made = of(graph).module()
    for count in (1, 2, 7):
        rows = torch.randn(count, 6)
        for found, wanted in zip(made(rows), graph(rows), strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_every_weight_is_one_input_and_every_node_tells_where_it_is_from() -> None:
    graph = typed(Block()).module
    before = str(graph.graph)
    made = of(graph)
    weights = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    assert set(made.graph_signature.buffers) == set(made.state_dict) == weights
    assert len(made.graph_signature.user_inputs) == 1
    named = {node.meta["custom"][ORIGIN] for node in made.graph.nodes if node.op == "call_function"}
    assert named == {node.name for node in graph.graph.nodes if node.op == "call_function"}
    assert str(graph.graph) == before and not any("custom" in node.meta for node in graph.graph.nodes)


class Twice(nn.Module):
    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        doubled = input * 2
        return doubled, doubled, input


def test_an_output_may_be_returned_twice_and_an_input_too() -> None:
    rows = torch.randn(3, 6)
    found = of(typed(Twice(), "fp32").module).module()(rows)
    assert [torch.equal(one, wanted) for one, wanted in zip(found, Twice()(rows), strict=True)] == [True] * 3


def exported(made: Any) -> onnx.ModelProto:
    result = torch.onnx.export(made, (), dynamo=True, verbose=False, optimize=False)
    assert result is not None
    return result.model_proto


@pytest.mark.parametrize("has_form", [True, False])
def test_it_is_traced_again_only_where_something_has_to_be_taken_apart(
    has_form: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[bool] = []
    whole = torch.export.ExportedProgram.run_decompositions
    monkeypatch.setattr(
        torch.export.ExportedProgram, "run_decompositions", lambda *a, **k: runs.append(True) or whole(*a, **k)
    )
    made = of(typed(nn.Linear(6, 6), "fp32").module, has_form)
    assert isinstance(made, Whole) is has_form
    model = exported(made)
    assert len(runs) == (not has_form)
    assert [node.op_type for node in model.graph.node] in (["Gemm"], ["Transpose", "MatMul", "Add"], ["MatMul", "Add"])
