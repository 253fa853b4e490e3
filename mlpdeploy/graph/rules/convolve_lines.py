"""A convolution along one dimension of its maps takes the other one, where that lies in front, into the batch.

before: `b p c w` -> permute -> `b c p w` -> conv2d with kernel 1 x k -> permute -> `b p n w`      (Strip-MLP's strips)
after:  `(b p) c 1 w` -> conv2d with kernel 1 x k -> `(b p) n 1 w`

The lines of a map do not meet in such a convolution. Groups of channels that share their weights are spelled as lines,
and lie in front of the channels: nothing is to be moved.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.kinds import convolution_arguments, convolves_maps, rearranged, shape_of
from mlpdeploy.graph.layout.view import View
from mlpdeploy.graph.matching.rearrangements import back
from mlpdeploy.graph.rule import Refused, Rule

aten = torch.ops.aten


def find(editor: Editor, node: fx.Node) -> int | Refused | None:
    """The dimension of such lines, where they lie in front of the channels and are wanted there."""
    lines = _lines(editor, node) if convolves_maps(node) else None
    x: Any = node.args[0] if node.args else None
    if lines is None or not _in_front(back(x).view, lines):
        return None
    if not _wanted_in_front(node, lines):
        return Refused("its lines lie in front of the channels, and its result is wanted otherwise")
    return lines


def _lines(editor: Editor, node: fx.Node) -> int | None:
    """The dimension of the map along which `node` does nothing, if it convolves the other; None elsewhere."""
    kernel = weight(editor.module, node.args[1])
    if kernel is None:
        return None
    _, _, _, stride, padding, *_ = convolution_arguments(node)
    idle = [index for index in range(2) if (kernel.shape[2 + index], stride[index], padding[index]) == (1, 1, 0)]
    free = len(idle) == 1 and kernel.shape[3 - idle[0]] > 1
    return 2 + idle[0] if free and shape_of(node)[2 + idle[0]] != 1 else None


def _in_front(view: View, lines: int) -> bool:
    """Whether, in memory, all axes of the lines are slower than all of the channels."""
    places = {axis: place for place, axis in enumerate(view.order)}
    axes, channels = view.seen[lines], view.seen[1]
    return bool(channels) and max(places[axis] for axis in axes) < min(places[axis] for axis in channels)


def _wanted_in_front(node: fx.Node, lines: int) -> bool:
    """Whether a rearrangement of the result, which alone reads it, puts the lines in front of the channels."""
    view: View | None = View.of(shape_of(node))
    current = node
    while len(current.users) == 1 and view is not None:
        current = next(iter(current.users))
        view = rearranged(current, view) if current.op == "call_function" else None
        # As if the result lay as that rearrangement shows it: its dimensions in memory, those of `node` seen.
        if view is not None and _in_front(View(view.seen, view.stored), lines):
            return True
    return False


def replace(editor: Editor, node: fx.Node, lines: int) -> fx.Node:
    """`node` on one map for each line, and its result back in the order of its dimensions."""
    x: Any = node.args[0]
    across = 5 - lines
    batch, channels, *_ = shape_of(x)
    count, length = shape_of(x)[lines], shape_of(x)[across]
    shape = [batch * count, channels, 1, length] if lines == 2 else [batch * count, channels, length, 1]
    front = editor.permute(x, [0, lines, 1, across], origin=node)
    folded = editor.reshape(front, shape, origin=node)
    result = editor.call(node.target, (folded, *node.args[1:]), dict(node.kwargs), origin=node)
    produced = [batch, count, shape_of(node)[1], shape_of(node)[across]]
    unfolded = editor.reshape(result, produced, origin=node)
    return editor.permute(unfolded, [0, 2, 1, 3] if lines == 2 else [0, 2, 3, 1], origin=node)


RULE = Rule("convolve_lines", "normalise", find, replace)
