"""Both branches of Permute-MLP become one segment-grouped projection, without a permutation around it.

before: `b h w (n s)` -> permute -> `b n w (h s)` -> linear -> `b n w (k t)` -> permute -> `b k w (n t)`
after:  segment_grouped_projection over (h, s) from `b h (w n) s` to `b k (w n) t`

In memory an axis p and the last axis s are contracted together, and whatever lies between them (q) is left alone. The
activation is already a matrix with p*q rows of s numbers each, so a kernel can walk it as it lies; an engine without
that kernel runs the body of the ONNX function, with the permutes inside.
"""

from __future__ import annotations

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.layout import Group, numel, runs
from mlpdeploy.graph.ops import SEGMENT_GROUPED_PROJECTION
from mlpdeploy.graph.projection import Lowering, Projection, describe, regroup, reindexed, vector

aten = torch.ops.aten


def matches(projection: Projection) -> bool:
    """Two runs of axes are contracted, and the second is the last in memory."""
    pieces = projection.runs()
    return sum(map(projection.contracts, pieces)) == 2 and projection.contracts(pieces[-1])


def _parts(projection: Projection) -> tuple[Group, Group, Group, Group]:
    """The axes before p, and p, q, s."""
    *first, p, q, s = projection.runs()
    return (first[0] if first else ()), p, q, s


def _results(projection: Projection) -> tuple[Group, Group] | None:
    """k and t, where the result is wanted as (before, k, q, t)."""
    before, _, q, _ = _parts(projection)
    pieces = runs(projection.wanted, projection.produced)
    if len(pieces) != (4 if before else 3) or pieces[-2] != q or pieces[:-3] != ([before] if before else []):
        return None
    return pieces[-3], pieces[-1]


def guard(projection: Projection) -> str | None:
    """The result must be wanted with k where p was and t where s was."""
    if _results(projection) is None:
        return f"its consumers want the result as ({describe(projection.wanted)}): a transpose is needed"
    return None


def emit(
    editor: Editor, x: fx.Node, projection: Projection, matrix: fx.Node, bias: fx.Node | None, origin: fx.Node
) -> tuple[fx.Node, tuple[Group, ...]]:
    """The custom operation between two reshapes that move nothing."""
    before, p, q, s = _parts(projection)
    results = _results(projection)
    assert results is not None
    k, t = results
    matrix = reindexed(editor, matrix, (projection.produced, (*k, *t)), (projection.contracted, (*p, *s)), origin)
    stored = regroup(editor, x, (before, p, q, s), origin)
    result = editor.call(SEGMENT_GROUPED_PROJECTION, (stored, matrix, numel(k)), origin=origin)
    if bias is not None:
        column = vector(editor, bias, projection.produced, (*k, *t), [numel(k), 1, numel(t)], origin)
        result = editor.call(aten.add.Tensor, (result, column), origin=origin)
    return result, (before, k, q, t)


RULE = Lowering("project_segments", matches, guard, emit)
