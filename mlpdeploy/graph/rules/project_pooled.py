"""A 1x1 convolution of a map of one element, which is what pooling leaves, becomes a linear.

before: conv2d(x, W) with x of shape `b c 1 1` and W of shape `n c 1 1`                               (split attention)
after:  reshape -> linear -> reshape, between `b c` and `b n`

What follows (branch weights, softmax) is then computed on `b n` as it lies; a convolution's result would first be laid
out channels last. Where nothing rearranges it (a gate that multiplies a map) the convolution stays: it adds its own
bias, and needs no reshapes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.kinds import is_tensor, rearranged, shape_of
from mlpdeploy.graph.layout import View
from mlpdeploy.graph.rule import Log, Rule

aten = torch.ops.aten


def rewrite(editor: Editor, log: Log) -> None:
    """Replace every such convolution."""
    for node in list(editor.graph.nodes):
        kernel = weight(editor.module, node.args[1]) if node.target is aten.conv2d.default else None
        if kernel is None or not _is_linear(node, kernel) or not _is_rearranged(node):
            continue
        x: Any = node.args[0]
        bias = node.args[2] if len(node.args) > 2 else None
        with editor.before(node):
            flat = editor.reshape(x, shape_of(x)[:2], origin=node)
            matrix = editor.constant(kernel.flatten(1), f"{node.args[1].target}_matrix", origin=node)
            result = editor.call(aten.linear.default, (flat, matrix, bias), origin=node)
            node.replace_all_uses_with(editor.reshape(result, shape_of(node), origin=node))
        editor.graph.erase_node(node)
        log.fired()


def _is_linear(node: fx.Node, kernel: torch.Tensor) -> bool:
    arguments: Any = (*node.args, *(None, [1, 1], [0, 0], [1, 1], 1)[len(node.args) - 2 :])
    padding, groups = arguments[4], arguments[6]
    one = shape_of(node.args[0])[2:] == (1, 1) == tuple(kernel.shape[2:])  # type: ignore[arg-type]
    return one and not any(padding) and groups == 1


def _is_rearranged(node: fx.Node) -> bool:
    """Whether the result, or what is computed of it element by element and by further such convolutions, is."""
    for user in (user for user in node.users if user.op == "call_function" and is_tensor(user)):
        if shape_of(user)[2:] == (1, 1):
            if _is_rearranged(user):
                return True
        elif rearranged(user, View.of(shape_of(node))) is not None:
            return True
    return False


RULE = Rule("project_pooled", phase="normalise", rewrite=rewrite)
