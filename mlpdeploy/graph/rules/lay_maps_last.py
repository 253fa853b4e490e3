"""Maps that convolutions read have their channels last in memory, as GPUs convolve them.

before: x -> conv2d -> batch_norm -> relu -> conv2d
after:  x -> contiguous(channels last) -> conv2d -> batch_norm -> relu -> conv2d

A convolution gives its result in the memory format of its input, and what is pointwise hands it on: so the first map of
a chain is copied and no other, and a map that was permuted from (b, h, w, c) lies so already. Only an engine that
compiles PyTorch's own operations sees strides; in a file it is nothing. Where something else reads a map as it lies,
the copy would be one more.
"""

from __future__ import annotations

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.kinds import CONVOLUTIONS_OF_IMAGES, arguments, is_pointwise, is_tensor, shape_of
from mlpdeploy.graph.rule import Refused, Rule

aten = torch.ops.aten

HAND_ON = {
    aten.adaptive_avg_pool2d.default,
    aten.avg_pool2d.default,
    aten.batch_norm.default,
    aten.max_pool2d.default,
    aten.pad.default,
}
"""Beside what is pointwise, operations whose result has the memory format of their input."""


def find(editor: Editor, node: fx.Node) -> fx.Node | Refused | None:
    """The map of a convolution, where it does not lie so; notes whether each map does."""
    if node.target not in CONVOLUTIONS_OF_IMAGES or len(shape_of(node)) != 4:
        editor.notes[node] = _lies_last(editor, node)
        return None
    x, kernel = node.all_input_nodes[:2]
    editor.notes[node] = editor.notes.get(x, False)
    product = arguments(node)["groups"] == 1 and shape_of(kernel)[2:] == (1, 1)
    if editor.notes[node] or product:
        return None
    if any(user.target not in {*CONVOLUTIONS_OF_IMAGES, aten.contiguous.default} for user in x.users):
        return Refused("not only convolutions read its map")
    return x


def replace(editor: Editor, node: fx.Node, x: fx.Node) -> fx.Node:
    """The convolution of the map laid so, which others of the same map share."""
    copies = (user for user in x.users if user.target is aten.contiguous.default)
    laid = next(copies, None) or editor.call(
        aten.contiguous.default, (x,), {"memory_format": torch.channels_last}, origin=node
    )
    result = editor.call(node.target, (laid, *node.args[1:]), dict(node.kwargs), origin=node)
    editor.notes[result] = True
    return result


def _lies_last(editor: Editor, node: fx.Node) -> bool:
    """Whether the channels of a node's map are last in memory."""
    if not is_tensor(node) or len(shape_of(node)) != 4:
        return False
    if node.target is aten.permute.default:
        return list(arguments(node)["dims"]) == [0, 3, 1, 2]
    if node.target is aten.contiguous.default:
        return arguments(node)["memory_format"] is torch.channels_last
    if not is_pointwise(node) and node.target not in HAND_ON:
        return False
    maps = [one for one in node.all_input_nodes if one.op != "get_attr" and len(shape_of(one)) == 4]
    full = [one for one in maps if 1 not in shape_of(one)[2:]]
    return bool(full) and all(editor.notes.get(one, False) for one in full)


RULE = Rule("lay_maps_last", "fusion", find, replace, default=False)
