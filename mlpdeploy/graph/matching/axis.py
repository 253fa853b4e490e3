"""One axis of a value, followed through every operation that leaves its elements beside each other as they are.

An operation that works on each element of the axis alike (pointwise, norms, sums over others) hands it on; one that
sums over it, or makes it, with a constant has it in that constant. What else reads or makes it is where it ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from mlpdeploy.graph import kinds
from mlpdeploy.graph.editor import is_linear_of_constants
from mlpdeploy.graph.kinds import (
    arguments,
    convolution_arguments,
    dim_of,
    is_getitem,
    is_pointwise,
    is_tensor,
    rearranged,
    shape_of,
)
from mlpdeploy.graph.layout.view import Axis, Group, View, numel

aten = torch.ops.aten

MAPS = {aten.avg_pool2d.default, aten.max_pool2d.default, aten.adaptive_avg_pool2d.default}
"""Operations on each map of a batch and a channel alone."""

REDUCTIONS = kinds.REDUCTIONS | {
    aten.linalg_vector_norm.default, aten.logsumexp.default, aten.std.correction, aten.std.dim, aten.var.correction,
    aten.var.dim,
}  # fmt: skip
"""Operations that take some dimensions away, and do not see in which order these have their elements."""

NORMALISING = {aten.softmax.int, aten.log_softmax.int}
"""Operations along one dimension that treat its elements alike."""


@dataclass(frozen=True)
class Place:
    """The axis in a value: in dimension `dim`, between `before` slower and `behind` faster elements."""

    node: fx.Node
    dim: int
    before: int = 1
    behind: int = 1

    def at(self, node: fx.Node, dim: int) -> Place:
        """As large a dimension of another value."""
        return replace(self, node=node, dim=dim)


@dataclass
class Course:
    """Where an axis is: in values; in the constants `held` by what reads them, as (reader, constant); and at its ends,
    what `makes` a value with it and what `reads` one, as (reader, value).
    """

    places: dict[fx.Node, Place] = field(default_factory=dict)
    held: dict[tuple[fx.Node, fx.Node], set[Place]] = field(default_factory=dict)
    makes: list[fx.Node] = field(default_factory=list)
    reads: list[tuple[fx.Node, fx.Node]] = field(default_factory=list)


def follow(start: Place, size: int) -> Course | None:
    """The course of an axis of so many elements; None where a value would have it at two places."""
    course, waiting = Course(), [start]
    while waiting:
        place = waiting.pop()
        if (known := course.places.get(place.node)) is not None:
            if known != place:
                return None
            continue
        course.places[place.node] = place
        for operation in (place.node, *place.node.users):
            found = _beside(operation, place, size)
            if found is None and operation is place.node:
                course.makes.append(operation)
            elif found is None:
                course.reads.append((operation, place.node))
            else:
                waiting += [one for one in found if one.node.op != "get_attr"]
                for one in found:
                    if one.node.op == "get_attr":
                        course.held.setdefault((operation, one.node), set()).add(one)
    return course


def _beside(operation: fx.Node, place: Place, size: int) -> list[Place] | None:
    """Where else the axis is if an operation has it at `place`, of its result or an operand; None at an end."""
    if operation.op != "call_function":
        return None
    if is_getitem(operation):
        return _same(operation, place)
    if is_pointwise(operation):
        return _aligned(operation, place)
    if is_linear_of_constants(operation):
        return _projected(operation, place)
    if operation.target in REDUCTIONS:
        return _reduced(operation, place)
    if operation.target in kinds.ALONG | NORMALISING | {aten.index_select.default}:
        return _along(operation, place)
    known = _KNOWN.get(operation.target)
    if known is not None:
        return known(operation, place)
    return _rearranged(operation, place, size) if is_tensor(operation) else None


def _same(operation: fx.Node, place: Place) -> list[Place]:
    """Of an operation whose result has the dimensions of its first operand."""
    source: Any = operation.args[0]
    return [place.at(source if place.node is operation else operation, place.dim)]


def _aligned(operation: fx.Node, place: Place) -> list[Place] | None:
    """Operands broadcast, their last dimensions beside each other; one of a single element there has no part in it."""
    from_end = len(shape_of(place.node)) - place.dim
    extent = shape_of(place.node)[place.dim]
    if from_end > len(shape_of(operation)) or shape_of(operation)[-from_end] != extent:
        return None
    nodes = dict.fromkeys((operation, *(node for node in operation.all_input_nodes if is_tensor(node))))
    shapes = {node: shape_of(node) for node in nodes}
    return [
        place.at(node, len(shape) - from_end)
        for node, shape in shapes.items()
        if node is not place.node and len(shape) >= from_end and shape[-from_end] == extent
    ]


def _projected(operation: fx.Node, place: Place) -> list[Place]:
    """A linear has the axis that it contracts, or produces, in its constants."""
    x, matrix, bias = (*operation.args, None)[:3]
    if place.dim < len(shape_of(place.node)) - 1:
        return _same(operation, place)
    if place.node is x:
        return [place.at(matrix, 1)]  # type: ignore[arg-type]
    return [place.at(one, 0) for one in (matrix, bias) if isinstance(one, fx.Node)]


def _reduced(operation: fx.Node, place: Place) -> list[Place] | None:
    """A mean or sum over other dimensions; over the axis, it does not matter in which order."""
    given, dims = arguments(operation), range(len(shape_of(operation.all_input_nodes[0])))
    removed = {dim % len(dims) for dim in given["dim"] or ()} or dims
    kept = [dim for dim in dims if given["keepdim"] or dim not in removed]
    if place.node is operation:
        return [place.at(operation.args[0], kept[place.dim])] if kept[place.dim] not in removed else []  # type: ignore[arg-type]
    return [] if place.dim in removed else [place.at(operation, kept.index(place.dim))]


def _along(operation: fx.Node, place: Place) -> list[Place] | None:
    """Softmax treats its dimension alike; slices, splits, picks and gathers take from theirs by place."""
    dim = dim_of(operation)
    if operation.target in kinds.PICKS:
        if place.node is operation:
            return [place.at(operation.args[0], place.dim + (place.dim >= dim))]  # type: ignore[arg-type]
        return None if place.dim == dim else [place.at(operation, place.dim - (place.dim > dim))]
    return _same(operation, place) if operation.target in NORMALISING or place.dim != dim else None


def _normalised(operation: fx.Node, place: Place) -> list[Place]:
    """LayerNorm and RMSNorm over the axis have it in their scale and shift."""
    first = len(shape_of(operation)) - len(operation.args[1])  # type: ignore[arg-type]
    affine = (one for one in operation.args[2:4] if isinstance(one, fx.Node) and place.dim >= first)
    return [*_same(operation, place), *(place.at(one, place.dim - first) for one in affine)]


def _group_normalised(operation: fx.Node, place: Place) -> list[Place] | None:
    """One group has all channels, and each of them in its scale and shift."""
    if place.dim == 1 and operation.args[1] != 1:
        return None
    affine = (one for one in operation.args[2:4] if isinstance(one, fx.Node) and place.dim == 1)
    return [*_same(operation, place), *(place.at(one, 0) for one in affine)]


def _batch_normalised(operation: fx.Node, place: Place) -> list[Place]:
    """Batch and instance norms have their channels in each vector, as PReLU has them in its slopes."""
    vectors = [one for one in operation.args[1:5] if isinstance(one, fx.Node) and place.dim == 1]
    return [*_same(operation, place), *(place.at(one, 0) for one in vectors if shape_of(one) != (1,))]


def _convolved(operation: fx.Node, place: Place) -> list[Place] | None:
    """A convolution has its channels in its kernel; a depthwise one keeps them where they are."""
    x, kernel, bias, *_, groups = convolution_arguments(operation)
    constants = [one for one in (kernel, bias) if isinstance(one, fx.Node)]
    if len(shape_of(x)) < len(shape_of(kernel)):  # one image without a batch
        return None
    if place.dim == 0:
        return _same(operation, place)
    if place.dim != 1 or any(one.op != "get_attr" for one in constants):
        return None
    rows = [place.at(one, 0) for one in constants]
    if groups == shape_of(x)[1] == shape_of(operation)[1]:
        return [*_same(operation, place), *rows]
    if groups != 1:
        return None
    return [place.at(kernel, 1)] if place.node is x else rows


def _pooled(operation: fx.Node, place: Place) -> list[Place] | None:
    return _same(operation, place) if place.dim < len(shape_of(operation)) - 2 else None


def _joined(operation: fx.Node, place: Place) -> list[Place] | None:
    """Tensors that are joined along another dimension have the axis, each."""
    if place.dim == dim_of(operation):
        return None
    parts: Any = operation.args[0]
    return [place.at(node, place.dim) for node in (operation, *parts) if node is not place.node]


def _stacked(operation: fx.Node, place: Place) -> list[Place] | None:
    """Tensors that are stacked have the axis, each, where the new dimension is not counted."""
    dim = int(arguments(operation)["dim"]) % len(shape_of(operation))
    whole = place.dim if place.node is operation else place.dim + (place.dim >= dim)
    if whole == dim:
        return None
    parts: Any = operation.args[0]
    found = [place.at(operation, whole), *(place.at(node, whole - (whole > dim)) for node in parts)]
    return [one for one in found if one.node is not place.node]


def _padded(operation: fx.Node, place: Place) -> list[Place] | None:
    """Padding of other dimensions, which it tells from the last one on."""
    padding: Any = operation.args[1]
    from_end = len(shape_of(operation)) - 1 - place.dim
    return None if any(padding[2 * from_end : 2 * from_end + 2]) else _same(operation, place)


def _rearranged(operation: fx.Node, place: Place, size: int) -> list[Place] | None:
    """A reshape or permutation that keeps the axis whole has it in another place."""
    source = operation.args[0] if operation.args else None
    if not isinstance(source, fx.Node) or not is_tensor(source):
        return None
    cut = _cut(place, size) if place.node is source else View.of(shape_of(source))
    if cut is None or (view := rearranged(operation, cut)) is None:
        return None
    shape, parts = shape_of(operation), (place.before, size, place.behind)
    if place.node is source:
        return _found(operation, _middle(view.stored[place.dim], parts), view.seen)
    split = view.reshape([*shape[: place.dim], *parts, *shape[place.dim + 1 :]])
    return None if split is None else _found(source, split.seen[place.dim + 1], split.stored)


def _cut(place: Place, size: int) -> View:
    """A value seen as it lies, the axis a factor of its own."""
    view, parts = View.of(shape_of(place.node)), (place.before, size, place.behind)
    return view.replace({view.seen[place.dim][0]: tuple(Axis(one) for one in parts if one != 1)})


def _middle(group: Group, parts: Sequence[int]) -> Group:
    """Of the factors of a dimension, those of its middle part; none where one of them lies across its ends."""
    start = next((index for index in range(len(group)) if numel(group[:index]) == parts[0]), len(group))
    stop = next((index for index in range(start, len(group) + 1) if numel(group[start:index]) == parts[1]), start)
    return group[start:stop]


def _found(node: fx.Node, axes: Group, groups: Sequence[Group]) -> list[Place] | None:
    """The axes as a run of one of a value's dimensions; None where they are apart."""
    for dim, group in enumerate(groups):
        if not axes or axes[0] not in group:
            continue
        start = group.index(axes[0])
        before, behind = group[:start], group[start + len(axes) :]
        if group[start : start + len(axes)] == axes and all(isinstance(axis.size, int) for axis in (*before, *behind)):
            return [Place(node, dim, math.prod(a.size for a in before), math.prod(a.size for a in behind))]
    return None


_KNOWN: Mapping[Any, Callable[[fx.Node, Place], list[Place] | None]] = {
    aten.layer_norm.default: _normalised,
    aten.rms_norm.default: _normalised,
    aten.batch_norm.default: _batch_normalised,
    aten.instance_norm.default: _batch_normalised,
    aten.prelu.default: _batch_normalised,
    aten.group_norm.default: _group_normalised,
    aten.cat.default: _joined,
    aten.stack.default: _stacked,
    aten.pad.default: _padded,
    aten.expand.default: _aligned,
    **dict.fromkeys(MAPS, _pooled),
    **dict.fromkeys(kinds.CONVOLUTIONS, _convolved),
}
