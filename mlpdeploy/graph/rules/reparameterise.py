"""Parallel branches that are all linear maps of one tensor become the one projection that they amount to.

before: batch_norm(conv(x, W)) + batch_norm(conv 1x1(x)) + batch_norm(conv 3x3(x))     (RepMLP at train time: W maps
        the whole of h w, the others are depthwise and padded)
after:  conv(x, W'), where the columns of W' are what the sum makes of the identity

Any branch will do that keeps apart what the projection keeps apart, its rows and groups: convolutions, BatchNorms,
scales, shifts and reshapes in any order and number, low-rank pairs of linears. All passes over the activation but one
go, and so do the additions.
"""

from __future__ import annotations

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.kinds import shape_of
from mlpdeploy.graph.layout.view import flat
from mlpdeploy.graph.matching.branches import Merged, Region, matrices, merged, projections, region
from mlpdeploy.graph.rule import Refused, Rule

aten = torch.ops.aten


def find(editor: Editor, node: fx.Node) -> tuple[Region, Merged] | Refused | None:
    """A sum of parallel branches, and the projection that they amount to."""
    found = region(editor.module, node) if node.target is aten.add.Tensor else None
    if found is None:
        return None
    reasons: list[str] = []
    for projection in projections(editor.module, found):
        whole = merged(editor.module, found, projection)
        if isinstance(whole, Merged):
            return found, whole
        reasons.append(whole)
    return Refused(reasons[0]) if reasons else None


def replace(editor: Editor, node: fx.Node, match: tuple[Region, Merged]) -> fx.Node:
    """That projection."""
    found, whole = match
    anchor = whole.projection.anchor
    matrix, bias = matrices(editor.module, found, whole)
    like = anchor.args[1].meta["val"]  # type: ignore[union-attr]
    name = str(anchor.args[1].target)  # type: ignore[union-attr]
    rows = matrix.shape[0] * matrix.shape[1]
    tensor = matrix.reshape(rows, *like.shape[1:]).to(like.dtype)
    order, seen = (*whole.projection.kept, *whole.produced), flat(whole.result.seen)
    weights = editor.constant(tensor, f"{name}_merged", origin=anchor)
    biases = editor.constant(bias.reshape(rows).to(like.dtype), f"{name}_bias_merged", origin=anchor)
    args = (anchor.args[0], weights, biases, *anchor.args[3:])
    projected = editor.call(anchor.target, args, origin=anchor)
    if order != seen:
        projected = editor.reshape(projected, [axis.size for axis in order], origin=node)
        projected = editor.permute(projected, [order.index(axis) for axis in seen], origin=node)
    return editor.reshape(projected, shape_of(node), origin=node)


AFTER = ("normalise_contractions", "remove_identities")
RULE = Rule("reparameterise", "normalise", find, replace, AFTER, backwards=True)  # the longest sum first
