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
from mlpdeploy.graph.rule import Rule, drop

aten = torch.ops.aten

CUTS = {aten.slice.Tensor, aten.narrow.default}


@dataclass(frozen=True)
class Gathered:
    """`source` with the elements `indices` of dimension `dim`; `joined`: it takes more than slices to say so."""

    source: fx.Node
    dim: int
    indices: torch.Tensor
    joined: bool


def find(editor: Editor, node: fx.Node) -> Gathered | None:
    """The last operation of such a chain, as elements of one tensor."""
    dim = _dim_of(node)
    found = None if dim is None else _gathered(node, dim)
    return found if found is not None and found.joined else None


def replace(editor: Editor, node: fx.Node, found: Gathered) -> fx.Node | None:
    """The gather; behind it a constant that was added in front."""
    size = int(shape_of(found.source)[found.dim])
    if found.indices.tolist() == list(range(size)):
        return found.source
    indices = editor.constant(found.indices, f"{node.name}_indices", origin=node)
    result = editor.call(aten.index_select.default, (found.source, found.dim, indices), origin=node)
    node.replace_all_uses_with(result)
    drop(editor, [node])
    _move_constant(editor, found, result)
    return None


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


def _gathered(node: fx.Node, dim: int) -> Gathered | None:
    """`node` as elements of one tensor along `dim`; None where it joins several tensors."""
    arguments: Any = node.args
    if node.target in CUTS and shape_of(node) == shape_of(arguments[0]):
        return _gathered(arguments[0], dim)
    if _dim_of(node) != dim:
        size = shape_of(node)[dim]
        return Gathered(node, dim, torch.arange(size), False) if isinstance(size, int) else None
    if node.target is aten.cat.default:
        parts = [_gathered(part, dim) for part in arguments[0]]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or len({part.source for part in known}) > 1:
            return None
        return Gathered(known[0].source, dim, torch.cat([part.indices for part in known]), True)
    inner = _gathered(arguments[0], dim)
    if inner is None:
        return None
    if node.target is aten.roll.default:
        return Gathered(inner.source, dim, inner.indices.roll(arguments[1][0]), True)
    if any(isinstance(argument, fx.Node) for argument in arguments[2:]):
        return None
    indices = node.target(inner.indices, 0, *arguments[2:])  # type: ignore[operator]
    return Gathered(inner.source, dim, indices, inner.joined)


def _move_constant(editor: Editor, found: Gathered, result: fx.Node) -> None:
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
        if shift.shape[found.dim] > 1:
            shift = shift.index_select(found.dim, found.indices)
        again = editor.constant(shift, f"{constant.target}_moved", origin=added)  # type: ignore[union-attr]
        total = editor.call(aten.add.Tensor, (moved, again), origin=added)
    result.replace_all_uses_with(total)
    drop(editor, [result])


AFTER = ("convolve_regions", "decompose_rolls")
RULE = Rule("gather_shifts", "normalise", find, replace, AFTER, backwards=True)  # the last of a chain takes it whole
