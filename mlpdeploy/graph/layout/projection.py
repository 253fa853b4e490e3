"""An axis projection: a weight that contracts some axes of a stored tensor, wherever in memory they lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.kinds import shape_of
from mlpdeploy.graph.layout.view import Group, View, flat, numel, runs, together


@dataclass(frozen=True)
class Value:
    """A value of the network: the node that stores it, and how the value lies in that tensor."""

    node: fx.Node
    view: View


@dataclass(frozen=True)
class Projection:
    """Contraction of the axes `contracted` (in the order of the weight's columns) of a tensor that lies as `stored`.

    It produces the axes `produced` (in the order of the weight's rows); consumers want the result to lie as `wanted`.
    """

    stored: tuple[Group, ...]
    contracted: Group
    produced: Group
    wanted: Group

    def runs(self) -> list[Group]:
        """The axes as they lie, in runs of those contracted and those not."""
        return runs(flat(self.stored), self.contracted)

    def contracts(self, run: Group) -> bool:
        """Whether a run is one of those contracted."""
        return run[0] in self.contracted


Emit = Callable[[Editor, fx.Node, Projection, fx.Node, "fx.Node | None", fx.Node], tuple[fx.Node, tuple[Group, ...]]]


@dataclass(frozen=True)
class Lowering:
    """A way to compute an axis projection. Each file of `rules/` that knows one defines it as RULE.

    `matches(projection)`: whether it is of this kind. `guard(projection)`: None where it serves, else the reason.
    `emit(editor, stored tensor, projection, weight, bias, origin)`: the node that computes it, and how its result lies
    in memory: as `projection.wanted`, in groups. `after`, `default` and `phase` are as in a `Rule`.
    """

    name: str
    matches: Callable[[Projection], bool]
    guard: Callable[[Projection], str | None]
    emit: Emit
    after: tuple[str, ...] = ()
    default: bool = True
    phase: str = "layout"


def regroup(editor: Editor, node: fx.Node, groups: Sequence[Group], origin: fx.Node) -> fx.Node:
    """`node` reshaped so that each group of axes (in memory order) is one dimension; an earlier such reshape serves."""
    shape = [numel(group) for group in groups]
    for user in node.users:
        if user.target is torch.ops.aten.reshape.default and list(shape_of(user)) == shape:
            return user
    return editor.reshape(node, shape, origin=origin)


def reindexed(
    editor: Editor, matrix: fx.Node, rows: tuple[Group, Group], columns: tuple[Group, Group], origin: fx.Node
) -> fx.Node:
    """The weight with its rows (and columns) reordered from the first order of axes to the second."""
    if rows[0] == rows[1] and columns[0] == columns[1]:
        return matrix
    tensor = weight(editor.module, matrix)
    assert tensor is not None
    before, after = (*rows[0], *columns[0]), (*rows[1], *columns[1])
    factored = tensor.reshape([axis.size for axis in before]).permute([before.index(axis) for axis in after])
    return editor.constant(factored.reshape(tensor.shape), str(matrix.target), origin=origin)


def vector(
    editor: Editor, bias: fx.Node, produced: Group, wanted: Group, shape: Sequence[int], origin: fx.Node
) -> fx.Node:
    """A bias over `produced`, reordered as `wanted` and reshaped so that it broadcasts."""
    tensor = weight(editor.module, bias)
    assert tensor is not None
    if produced == wanted and list(shape) == list(tensor.shape):
        return bias
    factored = tensor.reshape([axis.size for axis in produced]).permute([produced.index(axis) for axis in wanted])
    return editor.constant(factored.reshape(list(shape)), str(bias.target), origin=origin)


def describe(axes: Group) -> str:
    """Sizes of axes, for messages: `batch 14 14 384`."""
    return " ".join(str(axis.size) if isinstance(axis.size, int) else "batch" for axis in axes)


def _contracts_last(projection: Projection) -> bool:
    pieces = projection.runs()
    return projection.contracts(pieces[-1]) and not any(projection.contracts(piece) for piece in pieces[:-1])


def _keeps_places(projection: Projection) -> str | None:
    kept = flat(projection.stored)[: -len(projection.contracted)]
    return None if projection.wanted[: len(kept)] == kept else "its result is wanted in another layout"


def _linear(
    editor: Editor, x: fx.Node, projection: Projection, matrix: fx.Node, bias: fx.Node | None, origin: fx.Node
) -> tuple[fx.Node, tuple[Group, ...]]:
    contracted = projection.runs()[-1]
    kept = tuple(run for group in projection.stored for run in runs(group, contracted) if run[0] not in contracted)
    produced = projection.wanted[-len(projection.produced) :]
    matrix = reindexed(editor, matrix, (projection.produced, produced), (projection.contracted, contracted), origin)
    if bias is not None:
        bias = vector(editor, bias, projection.produced, produced, matrix.meta["val"].shape[:1], origin)
    x = regroup(editor, x, (*kept, contracted), origin)
    return editor.call(torch.ops.aten.linear.default, (x, matrix, bias), origin=origin), (*kept, produced)


CHANNELS = Lowering("project_channels", _contracts_last, _keeps_places, _linear)
"""What a linear is when the axes that it contracts are last in memory: itself."""


def relaid(projection: Projection, seen: tuple[Group, ...]) -> Projection | None:
    """The projection of a tensor that does not lie as it is seen, moved so that a linear serves; None: move it there.

    The tensor goes straight to where the result is wanted, which then need not move. Where the result has to move
    anyway, because its consumers, who see it as `seen`, take the produced axes apart, the tensor stays as it lies.
    """
    rows = projection.wanted[-len(projection.produced) :]
    if set(rows) == set(projection.produced):
        kept, columns = projection.wanted[: -len(rows)], projection.contracted
    elif _contracts_last(projection) and projection.wanted != flat(seen):
        kept, columns = flat(projection.stored)[: -len(projection.contracted)], projection.runs()[-1]
        rows = projection.produced
    else:
        return None
    stored = (*together(kept, projection.stored), columns)
    return Projection(stored, projection.contracted, projection.produced, (*kept, *rows))
