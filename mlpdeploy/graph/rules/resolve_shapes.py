"""An operand that only lends its shape or its dtype becomes that shape or dtype, and parts of a batch become an axis.

before: view_as(x, y) · reshape_as(x, y) · expand_as(x, y) · type_as(x, y)
after:  reshape(x, shape of y) · reshape(x, shape of y) · expand(x, shape of y) · to(x, dtype of y)

before: chunk(x, 2, 0), where x has twice the batch                 (images and their mirror images in one batch)
after:  unbind(reshape(x, (2, batch, ...)), 0)

Then y is not kept for it, and the layout pass sees a plain rearrangement of x. How many chunks there are follows from
sizes; of a size that is symbolic, no exporter can say so.
"""

from __future__ import annotations

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.kinds import SPLITS, dim_of, shape_of
from mlpdeploy.graph.layout import size_of
from mlpdeploy.graph.rule import Log, Rule, Spelling, replace_spellings

aten = torch.ops.aten


def rewrite(editor: Editor, log: Log) -> None:
    """Replace each; values and shapes stay."""
    replace_spellings(editor, log, _SPELLINGS)


def _reshaped(editor: Editor, node: fx.Node) -> fx.Node:
    x, like = _operands(node)
    return editor.reshape(x, shape_of(like), origin=node)


def _expanded(editor: Editor, node: fx.Node) -> fx.Node:
    """`expand` keeps with -1 what it does not repeat, so of a symbolic size only a repeated one needs a node."""
    x, like = _operands(node)
    wanted, own = shape_of(like), shape_of(x)
    added = len(wanted) - len(own)
    sizes = [
        -1 if place >= added and own[place - added] == size else editor.size(size, origin=node)
        for place, size in enumerate(wanted)
    ]
    return editor.call(aten.expand.default, (x, sizes), origin=node)


def _cast(editor: Editor, node: fx.Node) -> fx.Node:
    x, like = _operands(node)
    return editor.call(aten.to.dtype, (x, like.meta["val"].dtype), origin=node)


def _parts(editor: Editor, node: fx.Node) -> fx.Node | None:
    x, dim, parts = node.args[0], dim_of(node), node.meta["val"]
    assert isinstance(x, fx.Node)
    shape, sizes = shape_of(x), {size_of(part.shape[dim]) for part in parts}
    if isinstance(shape[dim], int) or len(sizes) != 1 or shape[dim] != len(parts) * next(iter(sizes)):
        return None
    split = [*shape[:dim], len(parts), *sizes, *shape[dim + 1 :]]
    return editor.call(aten.unbind.int, (editor.reshape(x, split, origin=node), dim), origin=node)


def _operands(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    x, like = node.args
    assert isinstance(x, fx.Node) and isinstance(like, fx.Node)
    return x, like


_SPELLINGS: dict[object, Spelling] = {
    aten.view_as.default: _reshaped,
    aten.reshape_as.default: _reshaped,
    aten.expand_as.default: _expanded,
    aten.type_as.default: _cast,
    **dict.fromkeys(SPLITS, _parts),
}

RULE = Rule("resolve_shapes", phase="normalise", rewrite=rewrite)
