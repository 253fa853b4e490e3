"""Rows of a matrix that begin where a vector does, in operations without GELU as well."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mlpdeploy import kernels
from mlpdeploy.engine import programs
from mlpdeploy.graph.operations import OPERATIONS
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import Typed, apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from tests.plugins.test_operation import compiled_graph, kernel_calls, own_cache, pretended

pytest.importorskip("triton", reason="Triton, which the kernel is written in, is not installed")

__all__ = ["own_cache", "pretended"]

launch: Any = kernels.load("segment_grouped_projection.launch")


class Tokens(nn.Module):
    """Two products over 196 tokens by one matrix: bare, and accumulated."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(196, 196) / 14)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ours, stored = torch.ops.mlpdeploy, x[:, None, None]
        y = ours.segment_grouped_projection(stored, self.matrix, 1)
        return ours.segment_grouped_projection_epilogue(y, self.matrix, 1, None, None, None, x)


class Columns(nn.Module):
    """The same between channels, of a weight that is given."""

    def __init__(self, accumulate: bool) -> None:
        super().__init__()
        self.accumulate = accumulate

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor]:
        stored, ours = x[:, None, None], torch.ops.mlpdeploy
        if not self.accumulate:
            return (ours.segment_grouped_projection(stored, weight, 1).sin(),)
        bare = (stored, weight, 1, None, None, None)
        return (ours.segment_grouped_projection_epilogue(*bare, x.new_zeros(x.shape[0], 384, 8)).sin(),)


def typed(precision: str) -> Typed:
    rewritten = rewrite(trace(Tokens().eval(), [TensorSpec("x", (196, 8), torch.float32)]))
    return apply(rewritten, plan(rewritten, precision))


@pytest.mark.parametrize(("precision", "length"), [("fp16", 200), ("bf16", 200), ("fp32", 196)])
def test_products_without_gelu_are_padded_and_share_a_matrix(precision: str, length: int) -> None:
    given = typed(precision)
    longer = programs.padded(given)
    nodes = [node for node in longer.module.graph.nodes if node.target in OPERATIONS]
    assert len(nodes) == 2 and {node.args[1] for node in nodes} == {nodes[0].args[1]}
    assert tuple(nodes[0].args[1].meta["val"].shape) == (196, length)
    x = torch.randn(3, 196, 8)
    with torch.no_grad():
        assert torch.equal(*(one.module(x)[0] for one in (given, longer)))


@pytest.mark.parametrize("accumulate", [False, True])
def test_the_kernel_reads_the_longer_rows(accumulate: bool, pretended: None) -> None:
    """380 tokens, whose rows in the weight are 384 numbers."""
    (call,) = kernel_calls(compiled_graph(shape=(380, 8), network=Columns(accumulate)))
    used = call.kwargs["kwargs"]
    assert (used["S"], used["WEIGHT_ROW"], used.get("GELU")) == (380, 384, None)
