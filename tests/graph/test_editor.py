"""The editor writes what a trace would have written."""

from __future__ import annotations

import torch
from torch import nn

from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.tracing.trace import TensorSpec, trace

aten = torch.ops.aten


def test_arguments_stand_in_their_places_however_they_were_given() -> None:
    """Rules read them there; only what an operation takes by name alone keeps it."""
    traced = trace(nn.ReLU(), [TensorSpec("x", (4, 6), torch.float32)])
    editor = Editor(traced.module, traced.module.graph)
    x, origin = editor.inputs[0], next(node for node in traced.module.graph.nodes if node.op == "call_function")
    with editor.before(origin):
        cut = editor.call(aten.slice.Tensor, (x,), {"step": 2, "dim": 2}, origin=origin)
        gelu = editor.call(aten.gelu.default, (x,), {"approximate": "tanh"}, origin=origin)
        total = editor.call(aten.sum.dim_IntList, (x, [1]), {"dtype": torch.float64, "keepdim": True}, origin=origin)
    assert (cut.args, cut.kwargs) == ((x, 2, None, None, 2), {}) and cut.meta["val"].shape[1:] == (4, 3)
    assert (gelu.args, gelu.kwargs) == ((x,), {"approximate": "tanh"})
    assert (total.args, total.kwargs) == ((x, [1], True), {"dtype": torch.float64})


def test_a_permutation_of_a_permutation_is_one() -> None:
    traced = trace(nn.ReLU(), [TensorSpec("x", (4, 6), torch.float32)])
    editor = Editor(traced.module, traced.module.graph)
    x, origin = editor.inputs[0], next(node for node in traced.module.graph.nodes if node.op == "call_function")
    with editor.before(origin):
        first = editor.call(aten.permute.default, (x, [1, -1, 0]), origin=origin)
        second = editor.permute(first, [2, 1, 0], origin=origin)
        third = editor.permute(second, [0, 2, 1], origin=origin)
    assert second.args == (x, [0, 2, 1]) and second.meta["val"].shape[1:] == (6, 4)
    assert third is x
