"""Sums whose terms are all affine maps of one tensor: where they are in a graph, and which one matrix they amount to.

A term is any chain of constant scales and shifts, rearrangements, convolutions and linears. One of the projections in
the sum is the anchor: it contracts whole rows of the tensor, each group of `groups` with a matrix of its own. If the
other terms keep rows and groups apart as well, the sum is such a projection, and its matrices are what it makes of the
identity.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from mlpdeploy.graph.editor import is_linear_of_constants, weight
from mlpdeploy.graph.kinds import convolution_arguments, convolves_maps, is_tensor, rearranged, shape_of
from mlpdeploy.graph.layout.view import Axis, Group, View, flat, numel, size_at, size_of
from mlpdeploy.graph.matching.affine import affine, rearranges

aten = torch.ops.aten


@dataclass(frozen=True)
class Region:
    """The operations from `root` (not one of them) to the last, a sum; nothing else reads any but the last."""

    root: fx.Node
    nodes: tuple[fx.Node, ...]


@dataclass(frozen=True)
class RowProjection:
    """`anchor` reads the root, seen in the axes of `root`, as `rows` x `groups` x `contracted`."""

    anchor: fx.Node
    root: View
    rows: Group
    groups: Group
    contracted: Group

    @property
    def kept(self) -> Group:
        """The axes that every branch must keep apart."""
        return (*self.rows, *self.groups)

    def refined(self, splits: dict[Axis, Group]) -> RowProjection:
        """The same, told in factors of some axes."""
        rows, groups, contracted = View((), (self.rows, self.groups, self.contracted)).replace(splits).seen
        return RowProjection(self.anchor, self.root.replace(splits), rows, groups, contracted)


def region(module: nn.Module, top: fx.Node) -> Region | None:
    """The sum that ends in `top`, an addition.

    None where its terms are no affine maps of one tensor, or where one of them is that tensor itself: a copy that is
    added costs one pass, and inside the matrix its ones would take precision from the numbers beside them.
    """
    inside: set[fx.Node] = set()
    frontier = {top}
    while len(frontier) > 1 or not inside:
        node = max(frontier)  # of the graph's order
        frontier.remove(node)
        sources = _sources(module, node)
        if not sources or (inside and not inside.issuperset(node.users)):
            return None
        inside.add(node)
        frontier.update(sources)
    root = frontier.pop()
    nodes = tuple(sorted(inside))
    depth = {root: 0}
    for node in nodes:
        depth[node] = min(depth[source] for source in _sources(module, node)) + _projects(module, node)
    return Region(root, nodes) if depth[top] else None


def _projects(module: nn.Module, node: fx.Node) -> bool:
    """Whether `node` is a convolution or a linear whose weights are constants."""
    if convolves_maps(node):
        bias = node.args[2] if len(node.args) > 2 else None
        return weight(module, node.args[1]) is not None and (bias is None or weight(module, bias) is not None)
    return is_linear_of_constants(node)


def _is_sum(node: fx.Node) -> bool:
    terms = node.args[:2]
    return (
        node.target is aten.add.Tensor
        and not node.kwargs
        and all(isinstance(term, fx.Node) and is_tensor(term) for term in terms)
        and shape_of(terms[0]) == shape_of(terms[1])  # type: ignore[arg-type]
    )


def _sources(module: nn.Module, node: fx.Node) -> list[fx.Node]:
    """The activations of which `node` is an affine map; none where it is something else."""
    if node.op != "call_function" or not is_tensor(node) or not node.meta["val"].is_floating_point():
        return []
    if (found := affine(module, node)) is not None:
        return [found.source]
    if _is_sum(node):
        return list(node.args[:2])  # type: ignore[arg-type]
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not is_tensor(source) or source.op == "get_attr":
        return []
    return [source] if rearranges(node) or _projects(module, node) else []


def projections(module: nn.Module, found: Region) -> list[RowProjection]:
    """Every operation of a region that could be its anchor."""
    views = {found.root: View.of(shape_of(found.root))}
    results: list[RowProjection] = []
    for node in found.nodes:
        source = node.args[0] if isinstance(node.args[0], fx.Node) else None
        if source not in views:
            continue
        if _projects(module, node):
            results += _projection(node, views[source])
        elif (view := rearranged(node, views[source])) is not None:
            views[node] = view
    return results


def _projection(node: fx.Node, view: View) -> list[RowProjection]:
    shape = shape_of(node.args[0])  # type: ignore[arg-type]
    if is_linear_of_constants(node):
        return [RowProjection(node, View(view.stored, view.stored), flat(view.seen[:-1]), (), view.seen[-1])]
    _, matrix, _, _, padding, _, count = convolution_arguments(node)
    if any(padding) or shape_of(matrix)[2:] != shape[2:]:  # its kernel must be as large as its input
        return []
    split = view.reshape([shape[0], count, shape[1] // count, *shape[2:]])
    if split is None:
        return []
    return [RowProjection(node, View(split.stored, split.stored), split.seen[0], split.seen[1], flat(split.seen[2:]))]


@dataclass(frozen=True)
class Merged:
    """A sum that is a projection: how it lies in the projection's rows and groups, and in axes that it produces."""

    projection: RowProjection
    result: View

    @property
    def produced(self) -> Group:
        """The axes of the result that are no rows or groups, in their order there."""
        return tuple(axis for axis in self.result.order if axis not in self.projection.kept)


def merged(module: nn.Module, found: Region, projection: RowProjection) -> Merged | str:
    """The whole sum as a projection like one of its terms, or why it is none."""
    views: dict[fx.Node, View] = {found.root: projection.root}
    for node in found.nodes:
        sources = [views[source] for source in _sources(module, node)]
        view = _after(module, node, sources, projection)
        if isinstance(view, str):
            return view
        splits = _splits(sources[0], view) if rearranges(node) else {}
        if not splits.keys().isdisjoint(projection.kept):
            return merged(module, found, projection.refined(splits))
        views[node] = view
    whole = Merged(projection, views[found.nodes[-1]])
    rows = shape_of(projection.anchor.args[1])[0]  # type: ignore[arg-type]
    if numel(whole.produced) * numel(projection.groups) > rows:
        return "the sum is wider than the projection"
    return whole


def _splits(before: View, after: View) -> dict[Axis, Group]:
    """The axes that a rearrangement told in factors."""
    rest = list(after.order)
    splits: dict[Axis, Group] = {}
    for axis in before.order:
        parts = [rest.pop(0)]
        while numel(parts) != axis.size:
            parts.append(rest.pop(0))
        if parts != [axis]:
            splits[axis] = tuple(parts)
    return splits


def _after(module: nn.Module, node: fx.Node, views: list[View], projection: RowProjection) -> View | str:
    kept = set(projection.kept)
    view = views[0]
    if (link := affine(module, node)) is not None:
        tensors = [tensor for tensor in (link.scale, link.shift) if tensor is not None]
        dims = {dim for tensor in tensors for dim, size in enumerate(tensor.shape) if size != 1}
        varies = any(axis in projection.rows for dim in dims for axis in view.seen[dim])
        return "a scale or shift differs from row to row" if varies else view
    if len(views) == 2:
        alike = _outline(view, kept) == _outline(views[1], kept)
        return view if alike else "its terms keep different axes apart"
    if is_linear_of_constants(node):
        if kept.intersection(view.seen[-1]):
            return "a branch mixes what the projection keeps apart"
        last = _axes(shape_of(node)[-1])
        return View((*view.seen[:-1], last), (*view.seen[:-1], last))
    if convolves_maps(node):
        return _convolved(node, view, projection)
    return rearranged(node, view) or "a branch cuts across the rows of the projection"


def _convolved(node: fx.Node, view: View, projection: RowProjection) -> View | str:
    _, kernel, _, stride, padding, _, count = convolution_arguments(node)
    kept = set(projection.kept)
    batch, channels, *space = view.seen
    groups = tuple(itertools.takewhile(projection.groups.__contains__, channels))
    alone = all(size == 1 for size in (*shape_of(kernel)[2:], *stride)) and not any(padding)
    moved = (*channels[len(groups) :], *(() if alone else flat(space)))
    if kept.intersection(moved) or count % numel(groups):
        return "a branch mixes what the projection keeps apart"
    shape = shape_of(node)
    produced = (*groups, *_axes(shape[1] // numel(groups)))
    seen = (batch, produced, *(space if alone else map(_axes, shape[2:])))
    return View(seen, seen)


def _axes(size: int) -> Group:
    return () if size == 1 else (Axis(size),)


def _outline(view: View, kept: Iterable[Axis]) -> list[list[Any]]:
    """Per dimension: the axes kept, and how many elements of others lie between them."""
    outline: list[list[Any]] = []
    for group in view.seen:
        pieces = itertools.groupby(group, key=lambda axis: axis if axis in kept else None)
        outline.append([numel(axes) if axis is None else axis for axis, axes in pieces])
    return outline


def matrices(module: nn.Module, found: Region, whole: Merged) -> tuple[torch.Tensor, torch.Tensor]:
    """What the sum does to a row, in float64: (groups, produced, contracted) and the bias (groups, produced)."""
    bias = _run(module, found, whole, 0)[0]
    size = numel(whole.projection.contracted)
    images = _run(module, found, whole, size)[:size]
    return (images - bias).permute(1, 2, 0), bias


def _run(module: nn.Module, found: Region, whole: Merged, size: int) -> torch.Tensor:
    """The sum of an identity of `size` rows, in every group, with rows of zeros after it: (rows, groups, produced)."""
    projection = whole.projection
    one = size_at(numel(projection.rows), 1)
    batch = max(1, -(-size // one))
    groups, contracted = numel(projection.groups), numel(projection.contracted)
    rows = torch.zeros(one * batch, groups, contracted, dtype=torch.float64)
    rows[:size] = torch.eye(size, contracted, dtype=torch.float64)[:, None]
    axes = (*projection.kept, *projection.contracted)
    factored = rows.reshape([size_at(axis.size, batch) for axis in axes])
    lying = [axes.index(axis) for axis in projection.root.order]
    root = factored.permute(lying).reshape([size_at(size, batch) for size in shape_of(found.root)])
    values = {found.root: root, projection.anchor: _anchored(module, projection.anchor, rows, size, batch)}
    done = {found.root}
    for node in found.nodes:
        done.add(node)
        if node not in values:
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda arg: _value(module, arg, values, batch))
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        for operand in node.all_input_nodes:
            if done.issuperset(operand.users):
                values.pop(operand, None)
    seen = flat(whole.result.seen)
    summed = values[found.nodes[-1]].reshape([size_at(axis.size, batch) for axis in seen])
    order = [seen.index(axis) for axis in (*projection.kept, *whole.produced)]
    return summed.permute(order).reshape(one * batch, groups, -1)


def _anchored(module: nn.Module, anchor: fx.Node, rows: torch.Tensor, size: int, batch: int) -> torch.Tensor:
    """What the anchor makes of `rows`: of an identity these are the columns of its matrices, nothing to compute."""
    matrix, bias = (weight(module, arg) for arg in (*anchor.args[1:3], None)[:2])
    assert matrix is not None
    made = torch.zeros(rows.shape[0], matrix.shape[0], dtype=torch.float64)
    made[:size] = matrix.double().flatten(1).T.reshape(-1, *matrix.shape[:1])[:size]
    made = made if bias is None else made + bias.double()
    return made.reshape([size_at(size, batch) for size in shape_of(anchor)])


def _value(module: nn.Module, node: fx.Node, values: dict[fx.Node, torch.Tensor], batch: int) -> Any:
    if (constant := weight(module, node)) is not None:
        return constant.double() if constant.is_floating_point() else constant
    return values[node] if node in values else size_at(size_of(node.meta["val"]), batch)
