"""Groups of channels that are shifted against each other, with zeros moving in, become one depthwise convolution.

before: pad with zeros -> chunks or strided slices of the channels -> a slice of each -> cat     (AS-MLP, CycleMLP)
after:  conv2d with one kernel for each channel, which is 1 at the place that the channel comes from and 0 elsewhere

Exact in every precision. It reads and writes the map once, where padding, slicing and joining copy it twice.
Where the channels are joined in another order, the convolutions that read them take their weights in that order.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.kinds import SPLITS, convolves_maps, dim_of, shape_of
from mlpdeploy.graph.rule import Refused, Rule

aten = torch.ops.aten

CUTS = {aten.slice.Tensor, aten.narrow.default}


@dataclass(frozen=True)
class ShiftedPart:
    """Channels `channels` of a map, whose element (i, j) is that of `source` at (i + shift[0], j + shift[1]) or 0."""

    source: fx.Node
    channels: torch.Tensor
    shift: tuple[int, int]


def find(editor: Editor, node: fx.Node) -> list[ShiftedPart] | Refused | None:
    """The parts of a concatenation of such groups."""
    if node.target is not aten.cat.default or len(shape_of(node)) != 4 or dim_of(node) != 1:
        return None
    parts = [_part(part) for part in node.args[0]]  # type: ignore[union-attr, arg-type]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or len(parts) < 2 or not any(any(part.shift) for part in known):
        return None
    reason = _refusal(editor, node, known)
    return known if reason is None else Refused(reason)


def _part(node: fx.Node) -> ShiftedPart | None:
    """`node` as shifted channels of a map, back through slices to the map in front of the padding; None otherwise."""
    arguments: Any = node.args
    target: Any = node.target
    if target is aten.pad.default:
        return _padded(node)
    if target in CUTS:
        inner = _part(arguments[0])
        if inner is None or any(isinstance(argument, fx.Node) for argument in arguments[2:]):
            return None
        dim, before = dim_of(node), shape_of(arguments[0])
        if shape_of(node) == before:
            return inner
        if dim == 1:
            return ShiftedPart(inner.source, target(inner.channels, 0, *arguments[2:]), inner.shift)
        if dim == 0:
            return None
        kept = target(torch.arange(before[dim]), 0, *arguments[2:])
        if len(kept) == 0 or int(kept[-1] - kept[0]) != len(kept) - 1:
            return None
        rows, columns = inner.shift
        start = int(kept[0])
        return ShiftedPart(
            inner.source, inner.channels, (rows + start, columns) if dim == 2 else (rows, columns + start)
        )
    if target is operator.getitem and arguments[0].target in SPLITS and dim_of(arguments[0]) == 1:
        inner = _part(arguments[0].args[0])
        split = arguments[0]
        if inner is None:
            return None
        return ShiftedPart(inner.source, split.target(inner.channels, split.args[1], 0)[arguments[1]], inner.shift)
    return None


def _padded(node: fx.Node) -> ShiftedPart | None:
    """A map with zeros around it."""
    arguments: Any = (*node.args, *("constant", None)[len(node.args) - 2 :])
    source, padding, mode, value = arguments
    if mode != "constant" or value not in (None, 0) or len(padding) != 4:
        return None
    left, right, top, bottom = padding
    if len(shape_of(source)) != 4 or min(left, right, top, bottom) < 0:
        return None
    return ShiftedPart(source, torch.arange(int(shape_of(source)[1])), (-top, -left))


def _refusal(editor: Editor, node: fx.Node, parts: list[ShiftedPart]) -> str | None:
    source = parts[0].source
    channels = torch.cat([part.channels for part in parts])
    if any(part.source is not source for part in parts) or shape_of(node) != shape_of(source):
        return "its parts are of several maps, or do not fill one"
    if channels.sort().values.tolist() != list(range(len(channels))):
        return "a channel is there twice"
    in_order = channels.tolist() == list(range(len(channels)))
    if not in_order and not all(_reads_channels(editor, user) for user in node.users):
        return "its channels are in another order, and no convolution reads them"
    return None


def _reads_channels(editor: Editor, user: fx.Node) -> bool:
    """Whether `user` is a convolution of all channels with a constant weight."""
    if not convolves_maps(user) or weight(editor.module, user.args[1]) is None:
        return False
    groups: Any = user.args[6] if len(user.args) > 6 else 1
    return bool(groups == 1)


def replace(editor: Editor, node: fx.Node, parts: list[ShiftedPart]) -> fx.Node:
    """The convolution; what reads its channels in another order takes its weights so."""
    channels = torch.cat([part.channels for part in parts])
    reach = [max(abs(part.shift[axis]) for part in parts) for axis in (0, 1)]
    dtype = node.meta["val"].dtype
    kernel = torch.zeros(len(channels), 1, 2 * reach[0] + 1, 2 * reach[1] + 1, dtype=dtype)
    for part in parts:
        kernel[part.channels, 0, part.shift[0] + reach[0], part.shift[1] + reach[1]] = 1
    constant = editor.constant(kernel, f"{node.name}_shifts", origin=node)
    arguments = (parts[0].source, constant, None, [1, 1], reach, [1, 1], len(channels))
    result = editor.call(aten.conv2d.default, arguments, origin=node)
    place = channels.argsort()
    if place.tolist() != list(range(len(channels))):
        for user in list(node.users):
            _reorder(editor, user, place)
    return result


def _reorder(editor: Editor, reader: fx.Node, place: torch.Tensor) -> None:
    """Let a convolution read its channels from where they are now."""
    matrix = weight(editor.module, reader.args[1])
    assert matrix is not None
    with editor.before(reader):
        name = f"{reader.args[1].target}_reordered"  # type: ignore[union-attr]
        ordered = editor.constant(matrix[:, place], name, origin=reader)
    reader.args = (reader.args[0], ordered, *reader.args[2:])


RULE = Rule("convolve_shifts", "normalise", find, replace)
