"""Token mixing becomes a product from the left, without a transpose.

before: `b t c` -> permute -> `b c t` -> linear over t -> `b c u` -> permute -> `b u c`
after:  W @ x, from `b t c` to `b u c`

Any run of axes that is adjacent in memory and not last is contracted this way (`b h w c` over h: the rest `w c` is one
axis to the product). Both permutes go; the product itself costs the same.
"""

from __future__ import annotations

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.layout.projection import Lowering, Projection, describe, regroup, reindexed, vector
from mlpdeploy.graph.layout.view import Group

aten = torch.ops.aten


def matches(projection: Projection) -> bool:
    """One run of axes is contracted, and it is not the last in memory."""
    pieces = projection.runs()
    return sum(map(projection.contracts, pieces)) == 1 and not projection.contracts(pieces[-1])


def _parts(projection: Projection) -> tuple[Group, Group, Group, Group]:
    """The axes before, those contracted, those after, and what stands in the wanted result between before and after."""
    *first, contracted, after = projection.runs()
    before = first[0] if first else ()
    return before, contracted, after, projection.wanted[len(before) : -len(after)]


def guard(projection: Projection) -> str | None:
    """The result must be wanted with the produced axes where the contracted ones were."""
    before, _, after, produced = _parts(projection)
    if projection.wanted == (*before, *produced, *after) and set(produced) == set(projection.produced):
        return None
    return f"its consumers want the result as ({describe(projection.wanted)}): a transpose is needed"


def emit(
    editor: Editor, x: fx.Node, projection: Projection, matrix: fx.Node, bias: fx.Node | None, origin: fx.Node
) -> tuple[fx.Node, tuple[Group, ...]]:
    """W @ x, and the bias along its rows."""
    before, contracted, after, produced = _parts(projection)
    matrix = reindexed(editor, matrix, (projection.produced, produced), (projection.contracted, contracted), origin)
    groups = (before, contracted, after) if before else (contracted, after)
    result = editor.call(aten.matmul.default, (matrix, regroup(editor, x, groups, origin)), origin=origin)
    if bias is not None:
        rows = matrix.meta["val"].shape[0]
        column = vector(editor, bias, projection.produced, produced, [rows, 1], origin)
        result = editor.call(aten.add.Tensor, (result, column), origin=origin)
    return result, ((before, produced, after) if before else (produced, after))


RULE = Lowering("project_tokens", matches, guard, emit, after=("project_segments",))
