"""A convolution over patches that do not overlap, on channels-last activations, becomes a segment-grouped projection.

before: `b h w c` -> permute -> conv2d with kernel = stride -> permute -> `b h' w' n`     (ViP's Downsample)
after:  segment_grouped_projection over (kh, (kw c)) from `(b h') kh w' (kw c)` to `(b h') 1 w' n`

A patch's rows of kw * c numbers are contiguous in memory, so the patch is contracted as it lies, without a transpose.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from mlpdeploy.graph.custom_ops import SEGMENT_GROUPED_PROJECTION
from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.kinds import convolution_arguments, convolves_maps, is_tensor, rearranged, shape_of
from mlpdeploy.graph.layout.view import View, flat
from mlpdeploy.graph.rule import Refused, Rule, drop

aten = torch.ops.aten


@dataclass(frozen=True)
class PatchSource:
    """What a convolution over patches reads, as it is stored, and the rearrangement of its result: channels last."""

    source: fx.Node
    last: fx.Node


def find(editor: Editor, node: fx.Node) -> PatchSource | Refused | None:
    """Such a convolution between its rearrangements."""
    kernel = weight(editor.module, node.args[1]) if convolves_maps(node) else None
    if kernel is None:
        return None
    source, last = _channels_last_source(node), _channels_last_result(node)
    if source is None or last is None:
        return None
    reason = _refusal(node, kernel)
    return PatchSource(source, last) if reason is None else Refused(reason)


def replace(editor: Editor, node: fx.Node, found: PatchSource) -> None:
    """The projection in the place of the rearrangement behind it."""
    kernel = weight(editor.module, node.args[1])
    assert kernel is not None
    with editor.before(found.last):
        result = _projected(editor, node, found.source, kernel)
        found.last.replace_all_uses_with(editor.reshape(result, shape_of(found.last), origin=node))
    drop(editor, [found.last])


def _channels_last_source(node: fx.Node) -> fx.Node | None:
    """The tensor, stored channels last, of which the convolution's input is a rearrangement."""
    chain: list[fx.Node] = []
    current = node.all_input_nodes[0]
    while current.op == "call_function" and current.all_input_nodes:
        chain.insert(0, current)
        current = current.all_input_nodes[0]
        if not is_tensor(current):
            return None
        view: View | None = View.of(shape_of(current))
        for link in chain:
            view = rearranged(link, view) if view is not None else None
        if view is None:
            return None
        if view.order == flat(view.seen[dim] for dim in (0, 2, 3, 1)):
            return current
    return None


def _channels_last_result(node: fx.Node) -> fx.Node | None:
    """The rearrangement of the convolution's result that alone reads it and makes it channels last."""
    view: View | None = View.of(shape_of(node))
    assert view is not None
    wanted = flat(view.seen[dim] for dim in (0, 2, 3, 1))
    # PatchSource of one line come with the other lines counted to the batch, which is split again behind them.
    short, long = sorted(shape_of(node.args[1])[2:])  # type: ignore[arg-type]
    line, current = short == 1 < long, node
    while len(current.users) == 1 and view is not None:
        current = next(iter(current.users))
        view = rearranged(current, view) if current.op == "call_function" else None
        if view is not None and line:
            wanted = flat(view.stored[dim] for dim in (0, 2, 3, 1))
        if view is not None and flat(view.seen) == wanted:
            return current
    return None


def _refusal(node: fx.Node, kernel: torch.Tensor) -> str | None:
    _, _, _, stride, padding, dilation, groups = convolution_arguments(node)
    size = list(kernel.shape[2:])
    if list(stride) != size or any(padding) or groups != 1 or (list(dilation) != [1, 1] and size != [1, 1]):
        return "its patches overlap, are padded, dilated or grouped"
    height, width = shape_of(node.args[0])[2:]  # type: ignore[arg-type]
    if height % size[0] or width % size[1]:
        return "its patches do not cover the activations"
    return None


def _projected(editor: Editor, node: fx.Node, source: fx.Node, kernel: torch.Tensor) -> fx.Node:
    bias = node.args[2] if len(node.args) > 2 else None
    batch, channels, height, width = shape_of(node.args[0])  # type: ignore[arg-type]
    rows, _, high, wide = kernel.shape
    patches = [batch * (height // high), high, width // wide, wide * channels]
    matrix = kernel.permute(0, 2, 3, 1).reshape(rows, -1)
    constant = editor.constant(matrix, f"{node.args[1].target}_rows", origin=node)  # type: ignore[union-attr]
    stored = editor.reshape(source, patches, origin=node)
    result = editor.call(SEGMENT_GROUPED_PROJECTION, (stored, constant, 1), origin=node)
    result = editor.reshape(result, [batch, height // high, width // wide, rows], origin=node)
    return result if bias is None else editor.call(aten.add.Tensor, (result, bias), origin=node)


RULE = Rule("project_patches", "algebra", find, replace, after=("fold_affine",))
