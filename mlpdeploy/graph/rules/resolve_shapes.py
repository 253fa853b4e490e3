"""An operand that only lends its shape or its dtype becomes that shape or dtype, and parts of a batch become an axis.

before: view_as(x, y) · reshape_as(x, y) · expand_as(x, y) · type_as(x, y)
after:  reshape(x, shape of y) · reshape(x, shape of y) · expand(x, shape of y) · to(x, dtype of y)

before: chunk(x, 2, 0), where x has twice the batch                 (images and their mirror images in one batch)
after:  unbind(reshape(x, (2, batch, ...)), 0)

Then y is not kept for it, and the layout pass sees a plain rearrangement of x. How many chunks there are follows from
sizes; of a size that is symbolic, no exporter can say so.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.kinds import SPLITS, dim_of, shape_of
from mlpdeploy.graph.layout.view import size_of
from mlpdeploy.graph.rule import Rule

aten = torch.ops.aten

Spelling = Callable[[Editor, fx.Node], fx.Node]


def find(editor: Editor, node: fx.Node) -> Spelling | None:
    """How to spell it with sizes alone."""
    return _parts if node.target in SPLITS and _is_batch(node) else _SPELLINGS.get(node.target)


def replace(editor: Editor, node: fx.Node, spelling: Spelling) -> fx.Node:
    """That; values and shapes stay."""
    return spelling(editor, node)


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


def _is_batch(node: fx.Node) -> bool:
    """Whether it cuts a dimension that is a multiple of the batch into parts of one size."""
    dim, parts, whole = dim_of(node), node.meta["val"], shape_of(node.all_input_nodes[0])
    sizes = {size_of(part.shape[dim]) for part in parts}
    return not isinstance(whole[dim], int) and len(sizes) == 1 and whole[dim] == len(parts) * next(iter(sizes))


def _parts(editor: Editor, node: fx.Node) -> fx.Node:
    x, dim, parts = node.all_input_nodes[0], dim_of(node), node.meta["val"]
    shape = shape_of(x)
    split = [*shape[:dim], len(parts), size_of(parts[0].shape[dim]), *shape[dim + 1 :]]
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
}

RULE = Rule("resolve_shapes", "normalise", find, replace)
