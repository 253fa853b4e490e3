"""The mean that split attention needs is taken before the projections, not after them.

before: mean over h, w of (y_h + y_w + y_c), with y_h, y_w segment-grouped projections and y_c a linear of x
after:  the same projections of means of x, with the weight averaged over the axis that is both produced and averaged

The mean of a projection is the projection of the mean. So the reweighting of ViP is known before its branches run, the
full sum of the branches is never formed, and each branch can be scaled and accumulated as it is produced.
"""

from __future__ import annotations

import torch
from torch import fx

from mlpdeploy.graph.custom_ops import SEGMENT_GROUPED_PROJECTION
from mlpdeploy.graph.editor import Editor, is_linear_of_constants, weight
from mlpdeploy.graph.kinds import dims_of, keeps_dims, shape_of, terms
from mlpdeploy.graph.layout.view import Axis, Group, View, flat, numel
from mlpdeploy.graph.rule import Refused, Rule

aten = torch.ops.aten


def find(editor: Editor, node: fx.Node) -> list[fx.Node] | Refused | None:
    """The terms of a sum that is averaged, where a segment-grouped projection is among them."""
    if node.target is not aten.mean.dim or keeps_dims(node) or not dims_of(node):
        return None
    leaves = terms(node.all_input_nodes[0])
    if len(leaves) < 2 or not any(_segments(leaf) for leaf in leaves):
        return None
    reason = next((reason for leaf in leaves if (reason := _refusal(node, leaf))), None)
    return leaves if reason is None else Refused(reason)


def replace(editor: Editor, node: fx.Node, leaves: list[fx.Node]) -> fx.Node:
    """The sum of their means."""
    total = _mean(editor, node, leaves[0])
    for leaf in leaves[1:]:
        total = editor.call(aten.add.Tensor, (total, _mean(editor, node, leaf)), origin=node)
    return total


def _segments(leaf: fx.Node) -> fx.Node | None:
    """The segment-grouped projection that `leaf` is, or is a reshape of."""
    source = leaf.args[0] if leaf.target is aten.reshape.default else leaf
    return source if isinstance(source, fx.Node) and source.target is SEGMENT_GROUPED_PROJECTION else None


def _refusal(node: fx.Node, leaf: fx.Node) -> str | None:
    dims = dims_of(node) or ()
    if is_linear_of_constants(leaf):
        return "the mean includes the axis that a linear produces" if len(shape_of(leaf)) - 1 in dims else None
    operation = _segments(leaf)
    if operation is None:
        return "a term of the sum is no projection"
    if len(shape_of(operation)) > 4:
        return "the projection has an axis behind those that it produces"
    parts = _averaged(operation, leaf, dims)
    if parts is None:
        return "the sum sees the projection in axes that it does not have"
    (_, produced, _, last), averaged = parts
    if averaged.intersection(last) or (averaged.intersection(produced) and not averaged.issuperset(produced)):
        return "the mean takes a part of what the projection produces"
    return None


def _averaged(
    operation: fx.Node, leaf: fx.Node, dims: tuple[int, ...]
) -> tuple[tuple[Group, Group, Group, Group], set[Axis]] | None:
    """The axes of the projection's result, (B, K, Q, T), and those that the mean over `dims` of `leaf` takes."""
    view = View.of(shape_of(operation)).reshape(shape_of(leaf))
    if view is None:
        return None
    b, k, q, t = view.stored
    return (b, k, q, t), set(flat(view.seen[dim] for dim in dims))


def _mean(editor: Editor, node: fx.Node, leaf: fx.Node) -> fx.Node:
    """The mean of one term: its projection of the mean of what it projects."""
    dims = dims_of(node) or ()
    if is_linear_of_constants(leaf):
        mean = editor.call(aten.mean.dim, (leaf.args[0], list(dims), False), origin=leaf)
        return editor.call(leaf.target, (mean, *leaf.args[1:]), origin=leaf)
    operation = _segments(leaf)
    parts = _averaged(operation, leaf, dims) if operation is not None else None
    assert operation is not None and parts is not None
    (b, k, q, t), averaged = parts
    x, matrix, segments = operation.args
    p, s = shape_of(x)[1], shape_of(x)[3]  # type: ignore[arg-type]
    tensor = weight(editor.module, matrix)
    assert tensor is not None
    if averaged.issuperset(k):
        mean_rows = tensor.double().reshape(numel(k), numel(t), -1).mean(0).to(tensor.dtype)
        matrix, segments = editor.constant(mean_rows, f"{matrix.target}_mean", origin=leaf), 1  # type: ignore[union-attr]
    source = x.args[0] if x.target is aten.reshape.default else x  # type: ignore[union-attr]
    factors = [*((axis, axis.size) for axis in b), (None, p), *((axis, axis.size) for axis in q), (None, s)]
    factored = editor.reshape(source, [size for _, size in factors], origin=leaf)  # type: ignore[arg-type]
    removed = [index for index, (axis, _) in enumerate(factors) if axis in averaged]
    if removed:
        factored = editor.call(aten.mean.dim, (factored, removed, False), origin=leaf)
    left_b, left_q = (numel(axis for axis in group if axis not in averaged) for group in (b, q))
    small = editor.reshape(factored, [left_b, p, left_q, s], origin=leaf)
    result = editor.call(SEGMENT_GROUPED_PROJECTION, (small, matrix, segments), origin=leaf)
    return editor.reshape(result, shape_of(node), origin=leaf)


RULE = Rule("hoist_reweighting", "algebra", find, replace, default=False)
