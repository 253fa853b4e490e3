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

from mlpdeploy.graph.branches import Merged, Region, matrices, merged, projections, region
from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.kinds import shape_of
from mlpdeploy.graph.layout import flat
from mlpdeploy.graph.rule import Log, Rule

aten = torch.ops.aten


def rewrite(editor: Editor, log: Log) -> None:
    """Replace every sum of parallel branches, the longest first."""
    position = {node: index for index, node in enumerate(editor.graph.nodes)}
    replaced: set[fx.Node] = set()
    for node in reversed(list(editor.graph.nodes)):
        if node.target is not aten.add.Tensor or node in replaced:
            continue
        found = region(editor.module, node, position)
        if found is None:
            continue
        reasons: list[str] = []
        for projection in projections(editor.module, found):
            whole = merged(editor.module, found, projection)
            if isinstance(whole, Merged):
                _replace(editor, found, whole)
                replaced.update(found.nodes)
                log.fired()
                break
            reasons.append(whole)
        else:
            if reasons:
                log.refused(node, reasons[0])


def _replace(editor: Editor, found: Region, whole: Merged) -> None:
    anchor, top = whole.projection.anchor, found.nodes[-1]
    matrix, bias = matrices(editor.module, found, whole)
    like = anchor.args[1].meta["val"]  # type: ignore[union-attr]
    name = str(anchor.args[1].target)  # type: ignore[union-attr]
    rows = matrix.shape[0] * matrix.shape[1]
    tensor = matrix.reshape(rows, *like.shape[1:]).to(like.dtype)
    order, seen = (*whole.projection.kept, *whole.produced), flat(whole.result.seen)
    with editor.before(top):
        weights = editor.constant(tensor, f"{name}_merged", origin=anchor)
        biases = editor.constant(bias.reshape(rows).to(like.dtype), f"{name}_bias_merged", origin=anchor)
        args = (anchor.args[0], weights, biases, *anchor.args[3:])
        projected = editor.call(anchor.target, args, origin=anchor)
        if order != seen:
            projected = editor.reshape(projected, [axis.size for axis in order], origin=top)
            projected = editor.permute(projected, [order.index(axis) for axis in seen], origin=top)
        projected = editor.reshape(projected, shape_of(top), origin=top)
    top.replace_all_uses_with(projected)


RULE = Rule("reparameterise", phase="normalise", rewrite=rewrite)
