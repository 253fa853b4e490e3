"""A product as that of a matrix: each row has all input channels of one place, so that blocks of them can be coded.

before: x @ W + b, or a segment-grouped projection of x and what follows it
after:  rows of x (r, K), coded, times W^T (N, K), coded, + b in the shape and the order of before

Blocks lie along the last axis. The input channels of a segment-grouped projection are moved there, and what it gives is
moved back, as its definition does (`custom_ops.by_permuting`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from mlpdeploy.graph import custom_ops
from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.layout.view import Size, size_of
from mlpdeploy.graph.operation import GELUS

aten = torch.ops.aten
SEGMENTED = (custom_ops.SEGMENT_GROUPED_PROJECTION, custom_ops.WITH_EPILOGUE)


def rows(editor: Editor, x: fx.Node, inputs: int, segmented: bool) -> fx.Node:
    """What a product reads as rows (r, K)."""
    if segmented:
        x = editor.permute(x, [0, 2, *range(4, x.meta["val"].dim()), 1, 3], origin=x)
    return editor.call(aten.reshape.default, (x, [-1, inputs]), origin=x)


def product(
    editor: Editor, node: fx.Node, x: fx.Node, coded: fx.Node, weight: fx.Node, given: Sequence[Any]
) -> fx.Node:
    """`node`, which reads `x`, of coded rows and a coded weight (N, K); `given` are its arguments behind the weight."""
    if node.target not in SEGMENTED:
        made = _named(editor, node, coded, weight, *(one for one in given if one is not None))
        return editor.reshape(made, _shape(node), origin=node)
    segments, bias, gelu, scale, accumulate = (*given, None, None, None, None)[:5]
    flat = [] if bias is None else [editor.reshape(bias, [bias.meta["val"].numel()], origin=node)]
    made = _named(editor, node, coded, weight, *flat)
    batch, _, q, _, *behind = _shape(x)
    sizes = [batch, q, *behind, segments, made.meta["val"].shape[1] // segments]
    last = len(sizes) - 1
    order = [0, last - 1, 1, last, *range(2, last - 1)]
    made = editor.permute(editor.reshape(made, sizes, origin=node), order, origin=node)
    if gelu is not None:
        made = editor.call(aten.gelu.default, (made,), {"approximate": GELUS[gelu]}, origin=node)
    if accumulate is None:
        return made
    made = editor.reshape(made, _shape(accumulate), origin=node)
    if scale is not None:
        made = editor.call(aten.mul.Tensor, (made, scale), origin=node)
    return editor.call(aten.add.Tensor, (accumulate, made), origin=node)


def _named(editor: Editor, node: fx.Node, *operands: fx.Node) -> fx.Node:
    """The product of rows, which has the name of `node`."""
    made = editor.call(aten.linear.default, operands, origin=node)
    made.name = node.name
    return made


def _shape(node: fx.Node) -> list[Size]:
    return [size_of(size) for size in node.meta["val"].shape]
