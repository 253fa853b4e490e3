"""A 1x1 convolution of regions that were folded into the channels becomes a strided convolution of the map.

before: `b c (a p) (d q)` -> `b (c p q) a d` -> conv2d with kernel 1x1                      (Hire-MLP's regions)
after:  conv2d with kernel and stride (p, q)

before: conv2d with kernel 1x1 -> `b (c p q) a d` -> `b c (a p) (d q)`
after:  conv_transpose2d with kernel and stride (p, q), and a bias that repeats every p rows and q columns

The rearrangements, each a copy of the map, are part of how a convolution reads and writes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.kinds import convolution_arguments, convolves_maps, is_tensor, rearranged, shape_of
from mlpdeploy.graph.layout.view import Axis, Group, View, flat, numel
from mlpdeploy.graph.rule import Rule

aten = torch.ops.aten

RegionAxes = tuple[Group, Group, Group]
"""Axes of the channels of a map, and those of a region along its height and its width."""


@dataclass(frozen=True)
class RegionFold:
    """A convolution with regions in its input's channels (`gathers`), or in its own, and the rearrangement of them.

    `outside` is the map as a whole: what the rearrangement reads, or what it makes.
    """

    outside: fx.Node
    channels: Group
    region: RegionAxes
    turns: tuple[int, ...]
    gathers: bool


def find(editor: Editor, node: fx.Node) -> RegionFold | None:
    """Such a convolution, with the rearrangement in front of it or behind it."""
    kernel = weight(editor.module, node.args[1]) if convolves_maps(node) else None
    if kernel is None or not _is_pointwise(node, kernel):
        return None
    return _rearranged_from(node.args[0]) or _rearranged_to(node)


def replace(editor: Editor, node: fx.Node, found: RegionFold) -> fx.Node | None:
    """The convolution, or the transposed one, of the whole map."""
    kernel = weight(editor.module, node.args[1])
    assert kernel is not None
    if found.gathers:
        return _gathered(editor, node, found, kernel)
    with editor.before(found.outside):
        found.outside.replace_all_uses_with(_scattered(editor, node, found, kernel))
    return None


def _is_pointwise(node: fx.Node, kernel: torch.Tensor) -> bool:
    _, _, _, stride, padding, _, groups = convolution_arguments(node)
    return tuple(kernel.shape[2:]) == (1, 1) and list(stride) == [1, 1] and not any(padding) and groups == 1


def _gathered(editor: Editor, node: fx.Node, found: RegionFold, kernel: torch.Tensor) -> fx.Node:
    """`node`, whose input is a map with its regions in the channels."""
    matrix = _reordered(kernel.flatten(1).T, found.channels, found.region)  # channels, height, width, rows
    weights = matrix.permute(3, 0, 1, 2)
    constant = editor.constant(weights, f"{node.args[1].target}_regions", origin=node)  # type: ignore[union-attr]
    bias = node.args[2] if len(node.args) > 2 else None
    return editor.call(node.target, (found.outside, constant, bias, list(weights.shape[2:])), origin=node)


def _scattered(editor: Editor, node: fx.Node, found: RegionFold, kernel: torch.Tensor) -> fx.Node:
    """`node`, from whose channels regions are laid out."""
    weights = _reordered(kernel.flatten(1), found.channels, found.region).permute(3, 0, 1, 2)
    stride = list(weights.shape[2:])
    bias = weight(editor.module, node.args[2]) if len(node.args) > 2 else None
    constant = editor.constant(weights, f"{node.args[1].target}_regions", origin=node)  # type: ignore[union-attr]
    arguments = (node.args[0], constant, None, stride)
    result = editor.call(aten.conv_transpose2d.input, arguments, origin=node)
    if bias is None:
        return result
    periodic = _reordered(bias[:, None], found.channels, found.region).permute(3, 0, 1, 2)
    turns = [count if step > 1 else 1 for count, step in zip(found.turns, stride, strict=True)]
    name = f"{node.args[2].target}_regions"  # type: ignore[union-attr]
    shift = editor.constant(periodic.repeat(1, 1, *turns), name, origin=node)
    return editor.call(aten.add.Tensor, (result, shift), origin=node)


def _reordered(matrix: torch.Tensor, axes: Group, region: RegionAxes) -> torch.Tensor:
    """`matrix`, whose rows are `axes`, as (channels, height, width, columns) of the region."""
    order = [axes.index(axis) for axis in flat(region)]
    factored = matrix.reshape(*(axis.size for axis in axes), -1).permute(*order, len(axes))
    return factored.reshape(*(numel(group) for group in region), -1)


def _region(whole: tuple[Group, ...], folded: tuple[Group, ...]) -> RegionAxes | None:
    """The region that dimension 1 of `folded` holds besides the channels of `whole`; None where it is none."""
    if len(whole) != 4 or len(folded) != 4 or whole[0] != folded[0]:
        return None
    if not flat(folded[2:]):  # a region that is the whole map: a linear's work
        return None
    if any(group[: len(outer)] != outer for group, outer in zip(whole[2:], folded[2:], strict=True)):
        return None
    height, width = (group[len(outer) :] for group, outer in zip(whole[2:], folded[2:], strict=True))
    members: set[Axis] = set(folded[1])
    return (whole[1], height, width) if height + width and members == {*whole[1], *height, *width} else None


def _rearranged_from(node: Any) -> RegionFold | None:
    """The map that `node` is a rearrangement of with regions in its channels; the nearest there is."""
    chain: list[fx.Node] = []
    current = node
    while current.op == "call_function" and current.all_input_nodes:
        chain.insert(0, current)
        current = current.all_input_nodes[0]
        view: View | None = View.of(shape_of(current)) if is_tensor(current) else None
        for link in chain:
            view = rearranged(link, view) if view is not None else None
        if view is None:
            return None
        if (region := _region(view.stored, view.seen)) is not None:
            return RegionFold(current, view.seen[1], region, (), gathers=True)
    return None


def _rearranged_to(node: fx.Node) -> RegionFold | None:
    """The rearrangement of `node` that alone reads it and lays out the regions in its channels."""
    view: View | None = View.of(shape_of(node))
    current = node
    while len(current.users) == 1 and view is not None:
        current = next(iter(current.users))
        view = rearranged(current, view) if current.op == "call_function" else None
        if view is not None and (region := _region(view.seen, view.stored)) is not None:
            return RegionFold(current, view.stored[1], region, tuple(map(numel, view.stored[2:])), gathers=False)
    return None


RULE = Rule("convolve_regions", "normalise", find, replace)
