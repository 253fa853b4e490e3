"""What the propagation of layouts leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace

aten = torch.ops.aten


class Softmax(nn.Module):
    """Of scores, along one dimension of them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return (x * 2).softmax(self.dim) + 1


@pytest.mark.parametrize("shape", [(2, 1, 25), (1, 25), (2, 25, 1), (25, 1, 1), (1, 1, 25), (1, 25, 1, 1)], ids=str)
def test_dimensions_of_one_stay_where_they_are_seen(shape: tuple[int, ...]) -> None:
    # As in the attention of one query: engines know it by its shape.
    network = Softmax(1 + shape.index(25))
    graph = rewrite(trace(network, [TensorSpec("scores", shape, torch.float32)])).module.graph
    assert [node.target for node in graph.find_nodes(op="call_function", target=aten.reshape.default)] == []
    (found,) = graph.find_nodes(op="call_function", target=aten.softmax.int)
    assert found.args[1] == 1 + shape.index(25)
