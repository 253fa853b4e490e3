"""A projection of two axes that another lies between becomes one segment-grouped projection, without a permutation.

before: `b h w (n s)` -> permute -> `b n w (h s)` -> linear -> `b n w (k t)` -> permute -> `b k w (n t)`
after:  segment_grouped_projection over (h, s) from `b h (w n) s` to `b k (w n) t`               (Permute-MLP)

before: `b h w (r o)` -> permute -> `b w o (r h)` -> linear -> `b w o e` -> linear -> `b w o (r h)` -> permute
after:  segment_grouped_projection from `b h w r o` to `b 1 w e o`, and from there to `b h w r o`      (RaftMLP)

In memory an axis p and a later one s are contracted together, and what lies between them (q) and behind them (o) is
left alone; the result has its parts k and t in their places. Where nothing lies behind, the activation is already a
matrix with p*q rows of s numbers each, so a kernel can walk it as it lies; an engine without that kernel runs the body
of the ONNX function, with the permutes inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from mlpdeploy.graph.custom_ops import SEGMENT_GROUPED_PROJECTION
from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.layout.projection import Lowering, Projection, describe, regroup, reindexed, vector
from mlpdeploy.graph.layout.view import Group, numel, runs

aten = torch.ops.aten


@dataclass(frozen=True)
class _Operand:
    """A tensor as the operation takes or makes it: what lies before, p (or k), q, s (or t), and what lies behind."""

    before: Group
    p: Group
    q: Group
    s: Group
    o: Group


def _operands(projection: Projection) -> tuple[_Operand, _Operand] | None:
    """What the operation would read and write; None where the axes do not lie so."""
    x, y = _halves(projection.runs(), projection.contracted), _halves(_wanted(projection), projection.produced)
    if x is None or y is None or not (x.p or y.p) or not (x.o or (x.p and y.p)):
        return None
    if not x.p:
        x = _cut(x, y)
    elif not y.p:
        y = _cut(y, x)
    return (x, y) if (x.before, x.q, x.o) == (y.before, y.q, y.o) else None


def _wanted(projection: Projection) -> list[Group]:
    return runs(projection.wanted, projection.produced)


def _halves(pieces: list[Group], marked: Group) -> _Operand | None:
    """Runs of axes as before, p, q, s, o, where one or two of them are `marked`; with one there is no p."""
    places = [index for index, piece in enumerate(pieces) if piece[0] in marked]
    if len(places) not in (1, 2) or places[0] > 1 or places[-1] < len(pieces) - 2:
        return None
    before = pieces[0] if places[0] else ()
    o = pieces[-1] if places[-1] < len(pieces) - 1 else ()
    if len(places) == 1:
        return _Operand(before, (), (), pieces[places[0]], o)
    return _Operand(before, pieces[places[0]], pieces[places[0] + 1], pieces[places[1]], o)


def _cut(one: _Operand, other: _Operand) -> _Operand:
    """What lies before, parted as it is in `other`."""
    count = len(other.before)
    return _Operand(one.before[:count], (), one.before[count:], one.s, one.o)


def matches(projection: Projection) -> bool:
    """Two runs of axes are contracted, or one that makes two."""
    pieces = projection.runs()
    contracted = sum(map(projection.contracts, pieces))
    if projection.contracts(pieces[-1]):
        return contracted == 2
    return contracted == 2 or (
        contracted == 1 and sum(piece[0] in projection.produced for piece in _wanted(projection)) == 2
    )


def guard(projection: Projection) -> str | None:
    """The result must be wanted with k where p was and t where s was."""
    if _operands(projection) is None:
        return f"its consumers want the result as ({describe(projection.wanted)}): a transpose is needed"
    return None


def emit(
    editor: Editor, x: fx.Node, projection: Projection, matrix: fx.Node, bias: fx.Node | None, origin: fx.Node
) -> tuple[fx.Node, tuple[Group, ...]]:
    """The custom operation between two reshapes that move nothing."""
    operands = _operands(projection)
    assert operands is not None
    read, made = operands
    contracted, produced = (*read.p, *read.s), (*made.p, *made.s)
    matrix = reindexed(editor, matrix, (projection.produced, produced), (projection.contracted, contracted), origin)
    trailing = (read.o,) if read.o else ()
    stored = regroup(editor, x, (read.before, read.p, read.q, read.s, *trailing), origin)
    result = editor.call(SEGMENT_GROUPED_PROJECTION, (stored, matrix, numel(made.p)), origin=origin)
    if bias is not None:
        shape = [numel(made.p), 1, numel(made.s), *(1 for _ in trailing)]
        column = vector(editor, bias, projection.produced, produced, shape, origin)
        result = editor.call(aten.add.Tensor, (result, column), origin=origin)
    return result, (made.before, made.p, made.q, made.s, *trailing)


RULE = Lowering("project_segments", matches, guard, emit)
