"""A 1x1 convolution of regions that were folded into the channels becomes a strided convolution of the map.

before: `b c (a p) (d q)` -> `b (c p q) a d` -> conv2d with kernel 1x1                      (Hire-MLP's regions)
after:  conv2d with kernel and stride (p, q)

before: conv2d with kernel 1x1 -> `b (c p q) a d` -> `b c (a p) (d q)`
after:  conv_transpose2d with kernel and stride (p, q), and a bias that repeats every p rows and q columns

The rearrangements, each a copy of the map, are part of how a convolution reads and writes it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.kinds import convolution_arguments, is_tensor, rearranged, shape_of
from mlpdeploy.graph.layout import Axis, Group, View, flat, numel
from mlpdeploy.graph.rule import Log, Rule

aten = torch.ops.aten

Region = tuple[Group, Group, Group]
"""Axes of the channels of a map, and those of a region along its height and its width."""


def rewrite(editor: Editor, log: Log) -> None:
    """Replace every such convolution together with the rearrangement in front of it or behind it."""
    for node in list(editor.graph.nodes):
        kernel = weight(editor.module, node.args[1]) if node.target is aten.conv2d.default else None
        if kernel is None or not _is_pointwise(node, kernel):
            continue
        if _gather_regions(editor, node, kernel) or _scatter_regions(editor, node, kernel):
            log.fired()


def _is_pointwise(node: fx.Node, kernel: torch.Tensor) -> bool:
    _, _, _, stride, padding, _, groups = convolution_arguments(node)
    return tuple(kernel.shape[2:]) == (1, 1) and list(stride) == [1, 1] and not any(padding) and groups == 1


def _gather_regions(editor: Editor, node: fx.Node, kernel: torch.Tensor) -> bool:
    """Replace `node`, whose input is a map with its regions in the channels."""
    source, view = _rearranged_from(node.args[0])
    region = None if view is None else _region(view.stored, view.seen)
    if view is None or region is None:
        return False
    matrix = _reordered(kernel.flatten(1).T, view.seen[1], region)  # channels, height, width, rows
    weights = matrix.permute(3, 0, 1, 2)
    with editor.before(node):
        constant = editor.constant(weights, f"{node.args[1].target}_regions", origin=node)  # type: ignore[union-attr]
        bias = node.args[2] if len(node.args) > 2 else None
        result = editor.call(node.target, (source, constant, bias, list(weights.shape[2:])), origin=node)
    node.replace_all_uses_with(result)
    return True


def _scatter_regions(editor: Editor, node: fx.Node, kernel: torch.Tensor) -> bool:
    """Replace `node`, from whose channels regions are laid out."""
    last, view = _rearranged_to(node)
    region = None if view is None else _region(view.seen, view.stored)
    if view is None or region is None:
        return False
    weights = _reordered(kernel.flatten(1), view.stored[1], region).permute(3, 0, 1, 2)
    stride = list(weights.shape[2:])
    bias = weight(editor.module, node.args[2]) if len(node.args) > 2 else None
    with editor.before(last):
        constant = editor.constant(weights, f"{node.args[1].target}_regions", origin=node)  # type: ignore[union-attr]
        arguments = (node.args[0], constant, None, stride)
        result = editor.call(aten.conv_transpose2d.input, arguments, origin=node)
        if bias is not None:
            periodic = _reordered(bias[:, None], view.stored[1], region).permute(3, 0, 1, 2)
            turns = [numel(group) if step > 1 else 1 for group, step in zip(view.stored[2:], stride, strict=True)]
            name = f"{node.args[2].target}_regions"  # type: ignore[union-attr]
            shift = editor.constant(periodic.repeat(1, 1, *turns), name, origin=node)
            result = editor.call(aten.add.Tensor, (result, shift), origin=node)
    last.replace_all_uses_with(result)
    return True


def _reordered(matrix: torch.Tensor, axes: Group, region: Region) -> torch.Tensor:
    """`matrix`, whose rows are `axes`, as (channels, height, width, columns) of the region."""
    order = [axes.index(axis) for axis in flat(region)]
    factored = matrix.reshape(*(axis.size for axis in axes), -1).permute(*order, len(axes))
    return factored.reshape(*(numel(group) for group in region), -1)


def _region(whole: tuple[Group, ...], folded: tuple[Group, ...]) -> Region | None:
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


def _rearranged_from(node: Any) -> tuple[fx.Node, View | None]:
    """The map that `node` is a rearrangement of with regions in its channels, and how; the nearest there is."""
    chain: list[fx.Node] = []
    current = node
    while current.op == "call_function" and current.all_input_nodes:
        chain.insert(0, current)
        current = current.all_input_nodes[0]
        view: View | None = View.of(shape_of(current)) if is_tensor(current) else None
        for link in chain:
            view = rearranged(link, view) if view is not None else None
        if view is None:
            break
        if _region(view.stored, view.seen) is not None:
            return current, view
    return node, None


def _rearranged_to(node: fx.Node) -> tuple[fx.Node, View | None]:
    """The rearrangement of `node` that alone reads it and lays out the regions in its channels, and how."""
    view: View | None = View.of(shape_of(node))
    current = node
    while len(current.users) == 1 and view is not None:
        current = next(iter(current.users))
        view = rearranged(current, view) if current.op == "call_function" else None
        if view is not None and _region(view.seen, view.stored) is not None:
            return current, view
    return node, None


RULE = Rule("convolve_regions", phase="normalise", rewrite=rewrite)
