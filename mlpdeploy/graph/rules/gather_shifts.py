"""Rolls, slices and their concatenation along one dimension become one gather with constant indices.

before: roll -> cat with a slice of the same -> slice -> roll back                             (Hire-MLP, MS-MLP)
after:  index_select(x, dim, indices)

A roll alone is two slices and a concatenation to every backend, each a copy, and TensorRT computes the sizes of a slice
at run time where the batch is dynamic. A constant that was added in front is added behind, where more can be fused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.kinds import shape_of
from mlpdeploy.graph.rule import Log, Rule

aten = torch.ops.aten

JOINS = {aten.roll.default, aten.cat.default}
CUTS = {aten.slice.Tensor, aten.narrow.default}


@dataclass(frozen=True)
class Selection:
    """`source` with the elements `indices` of one dimension; `joined`: it takes more than slices to say so."""

    source: fx.Node
    indices: torch.Tensor
    joined: bool


def rewrite(editor: Editor, log: Log) -> None:
    """Replace the last operation of each such chain, and drop the others where nothing else reads them."""
    for node in reversed(list(editor.graph.nodes)):
        dim = _dim_of(node) if node.users else None
        if dim is None:
            continue
        found = _selection(node, dim)
        if found is None or not found.joined:
            continue
        with editor.before(node):
            result = _selected(editor, node, found, dim)
        node.replace_all_uses_with(result)
        _drop(editor, node)
        if found.source is not result:
            _move_constant(editor, found, result, dim)
        log.fired()


def _dim_of(node: fx.Node) -> int | None:
    """The one dimension along which `node` rolls, slices or joins, where its size is known; None for other nodes."""
    if node.target is aten.roll.default:
        dims: Any = node.args[2] if len(node.args) > 2 else []
        dim = dims[0] if len(dims) == 1 else None
    else:
        known = node.target in CUTS or node.target is aten.cat.default
        dim = (*node.args, 0)[1] if known else None
    if dim is None:
        return None
    index: int = dim % len(shape_of(node))
    return index if isinstance(shape_of(node)[index], int) else None


def _selection(node: fx.Node, dim: int) -> Selection | None:
    """`node` as elements of one tensor along `dim`; None where it joins several tensors."""
    arguments: Any = node.args
    if node.target in CUTS and shape_of(node) == shape_of(arguments[0]):
        return _selection(arguments[0], dim)
    if _dim_of(node) != dim:
        size = shape_of(node)[dim]
        return Selection(node, torch.arange(size), False) if isinstance(size, int) else None
    if node.target is aten.cat.default:
        parts = [_selection(part, dim) for part in arguments[0]]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or len({part.source for part in known}) > 1:
            return None
        return Selection(known[0].source, torch.cat([part.indices for part in known]), True)
    inner = _selection(arguments[0], dim)
    if inner is None:
        return None
    if node.target is aten.roll.default:
        return Selection(inner.source, inner.indices.roll(arguments[1][0]), True)
    if any(isinstance(argument, fx.Node) for argument in arguments[2:]):
        return None
    return Selection(inner.source, node.target(inner.indices, 0, *arguments[2:]), inner.joined)  # type: ignore[operator]


def _selected(editor: Editor, node: fx.Node, found: Selection, dim: int) -> fx.Node:
    if found.indices.tolist() == list(range(int(shape_of(found.source)[dim]))):
        return found.source
    indices = editor.constant(found.indices, f"{node.name}_indices", origin=node)
    return editor.call(aten.index_select.default, (found.source, dim, indices), origin=node)


def _drop(editor: Editor, node: fx.Node) -> None:
    """Erase `node` and what it alone reads along a dimension."""
    operands = node.all_input_nodes
    editor.graph.erase_node(node)
    for operand in operands:
        if not operand.users and operand.target in JOINS | CUTS:
            _drop(editor, operand)


def _move_constant(editor: Editor, found: Selection, result: fx.Node, dim: int) -> None:
    """Where `result` alone reads `x + constant`, gather x and the constant each."""
    added = found.source
    if added.target is not aten.add.Tensor or added.kwargs or list(added.users) != [result]:
        return
    x, constant = added.args
    shift = weight(editor.module, constant)
    rank = len(shape_of(added))
    if shift is None or shift.dim() != rank or not isinstance(x, fx.Node) or shape_of(x) != shape_of(added):
        return
    with editor.before(result):
        moved = editor.call(aten.index_select.default, (x, *result.args[1:]), origin=result)
        if shift.shape[dim] > 1:
            shift = shift.index_select(dim, found.indices)
        again = editor.constant(shift, f"{constant.target}_moved", origin=added)  # type: ignore[union-attr]
        total = editor.call(aten.add.Tensor, (moved, again), origin=added)
    result.replace_all_uses_with(total)
    editor.graph.erase_node(result)
    editor.graph.erase_node(added)


RULE = Rule("gather_shifts", phase="normalise", rewrite=rewrite)
