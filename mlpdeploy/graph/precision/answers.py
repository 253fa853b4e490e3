"""What an engine answers with instead of scores: probabilities, the largest of them, their classes.

before: scores (b, classes)
after:  softmax(scores); or the K largest (b, K), and their classes (b, K) int64
Both in FP32, whatever the network computes in: they cost nothing, and ties of low precision would be broken anyhow.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import cast

import torch
from torch import fx

from mlpdeploy.errors import InputError
from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.precision.typed import Typed
from mlpdeploy.graph.tracing.trace import TensorSpec

SCORES, CLASSES = "scores", "classes"
"""What the outputs of an engine that gives the largest scores are called."""

aten = torch.ops.aten


def answering(typed: Typed, softmax: bool, topk: int | None) -> Typed:
    """The graph that gives these answers; `typed` itself, which stays as it is, without any.

    Raises InputError where it has no single output of scores, or fewer classes than `topk`.
    """
    if not softmax and topk is None:
        return typed
    (scores,) = require_scores(typed.outputs, topk)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    (given,) = cast("tuple[fx.Node]", graph.graph_copy(typed.module.graph, copies))
    editor = Editor(typed.module, graph)
    found = _in_dtype(editor, given, torch.float32)
    if softmax:
        found = editor.call(aten.softmax.int, (found, -1), origin=given)
    if topk is None:
        graph.output((_in_dtype(editor, found, scores.dtype),))
        return replace(typed, module=fx.GraphModule(typed.module, graph))
    both = editor.call(aten.topk.default, (found, topk), origin=given)
    largest, classes = (editor.call(operator.getitem, (both, place), origin=given) for place in (0, 1))
    graph.output((_in_dtype(editor, largest, scores.dtype), classes))
    outputs = replace(scores, name=SCORES, shape=(topk,)), TensorSpec(CLASSES, (topk,), torch.int64)
    return replace(typed, module=fx.GraphModule(typed.module, graph), outputs=outputs)


def require_scores(outputs: tuple[TensorSpec, ...], topk: int | None) -> tuple[TensorSpec, ...]:
    """Raise InputError where a network gives no single row of scores, or not so many."""
    if len(outputs) != 1 or len(outputs[0].shape) != 1 or not outputs[0].dtype.is_floating_point:
        raise InputError("--softmax, --topk and --labels are for networks that give one score a class, and no more")
    if topk is not None and topk > outputs[0].shape[0]:
        raise InputError(f"--topk {topk}: the network has {outputs[0].shape[0]} classes")
    return outputs


def _in_dtype(editor: Editor, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    if node.meta["val"].dtype == dtype:
        return node
    return editor.call(aten.to.dtype, (node, dtype), origin=node)
