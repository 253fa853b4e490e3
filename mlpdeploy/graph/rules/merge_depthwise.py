"""Depthwise convolutions of groups of channels, joined behind, become one convolution of all the channels.

before: split -> roll each group by a distance of its own -> conv2d m_i x m_i, depthwise -> cat             (MS-MLP)
after:  one gather with constant indices -> one depthwise conv2d, each kernel in the middle of the largest

Odd kernels with zeros around them and as much more padding compute the same. It pays where launches and copies cost
more than products: each group is a slice, two copies and a convolution, and few groups have as many channels as the
vectors of an engine's kernels. Where the largest kernel has many more elements than the others, products win.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.kinds import SPLITS, convolution_arguments, convolves_maps, dim_of, is_getitem, shape_of
from mlpdeploy.graph.rule import Refused, Rule

aten = torch.ops.aten

MOST_PRODUCTS = 4
"""How many times the products may grow. MS-MLP's first stage, 3.2 times: as fast on CPUs, with a tenth of the nodes."""


@dataclass(frozen=True)
class Depthwise:
    """A depthwise convolution of the channels from `start`, which take the elements `rows` and `columns` of a map."""

    source: fx.Node
    start: int
    rows: torch.Tensor
    columns: torch.Tensor
    kernel: torch.Tensor
    bias: torch.Tensor | None


def find(editor: Editor, node: fx.Node) -> list[Depthwise] | Refused | None:
    """The convolutions that a concatenation joins."""
    if node.target is not aten.cat.default or len(shape_of(node)) != 4 or dim_of(node) != 1:
        return None
    groups = [_group(editor, part) for part in node.args[0]]  # type: ignore[union-attr, arg-type]
    found = [group for group in groups if group is not None]
    if len(found) < 2 or len(found) < len(groups) or not _complete(found, node):
        return None
    reason = _refusal(found)
    return found if reason is None else Refused(reason)


def _group(editor: Editor, node: fx.Node) -> Depthwise | None:
    """`node` as such a convolution, of stride 1 and `same` padding, that one operation reads; else None."""
    kernel = weight(editor.module, node.args[1]) if convolves_maps(node) else None
    if kernel is None or len(node.users) != 1:
        return None
    x, _, bias, stride, padding, dilation, groups = convolution_arguments(node)
    size = list(kernel.shape[2:])
    if kernel.shape[1] != 1 or groups != kernel.shape[0] or list(stride) != [1, 1] or list(dilation) != [1, 1]:
        return None
    if any(side % 2 == 0 for side in size) or list(padding) != [side // 2 for side in size]:
        return None
    places = [torch.arange(int(side)) for side in shape_of(x)[2:]]
    while (moved := _moved(editor, x)) is not None:
        x, dim, indices = moved
        if len(indices) != len(places[dim - 2]):
            return None
        places[dim - 2] = indices[places[dim - 2]]
    channels = _channels(x)
    if channels is None:
        return None
    return Depthwise(*channels, places[0], places[1], kernel, weight(editor.module, bias))


def _moved(editor: Editor, node: fx.Node) -> tuple[fx.Node, int, torch.Tensor] | None:
    """What `node` takes elements of, the dimension (height or width), and their constant indices."""
    arguments: Any = node.args
    if node.target is aten.index_select.default:
        x, dim, indices = arguments[0], int(arguments[1]) % 4, weight(editor.module, arguments[2])
    elif node.target is aten.roll.default and len(arguments) == 3 and len(arguments[2]) == 1:
        x, dim = arguments[0], int(arguments[2][0]) % 4
        size = shape_of(x)[dim]
        indices = torch.arange(size).roll(arguments[1][0]) if isinstance(size, int) else None
    else:
        return None
    return (x, dim, indices) if indices is not None and dim >= 2 else None


def _channels(node: fx.Node) -> tuple[fx.Node, int] | None:
    """The tensor that `node` takes neighbouring channels of, and the first of these."""
    arguments: Any = node.args
    if node.target is aten.slice.Tensor and dim_of(node) == 1 and (*arguments[4:], 1)[0] == 1:
        start = (*arguments[2:], 0)[0] or 0
        return arguments[0], start % int(shape_of(arguments[0])[1])
    if not is_getitem(node) or arguments[0].target not in SPLITS or dim_of(arguments[0]) != 1:
        return None
    sizes = [int(part.shape[1]) for part in arguments[0].meta["val"]]
    return arguments[0].args[0], sum(sizes[: arguments[1]])


def _complete(groups: list[Depthwise], node: fx.Node) -> bool:
    """Whether the groups are all channels of one tensor, in order."""
    ends = [group.start + len(group.kernel) for group in groups]
    starts = [group.start for group in groups]
    one = len({group.source for group in groups}) == 1
    return one and starts == [0, *ends[:-1]] and shape_of(groups[0].source) == shape_of(node)


def _refusal(groups: list[Depthwise]) -> str | None:
    height, width = (max(group.kernel.shape[dim] for group in groups) for dim in (2, 3))
    before = sum(group.kernel.numel() for group in groups)
    after = sum(len(group.kernel) for group in groups) * height * width
    return f"one kernel for all has {after / before:.1f} times the products" if after > MOST_PRODUCTS * before else None


def replace(editor: Editor, node: fx.Node, groups: list[Depthwise]) -> fx.Node:
    """One convolution of all the channels."""
    height, width = (max(group.kernel.shape[dim] for group in groups) for dim in (2, 3))
    kernels = []
    for group in groups:
        above, left = (height - group.kernel.shape[2]) // 2, (width - group.kernel.shape[3]) // 2
        kernels.append(F.pad(group.kernel, (left, left, above, above)))
    kernel = editor.constant(torch.cat(kernels), f"{node.name}_kernels", origin=node)
    bias = None
    if any(group.bias is not None for group in groups):
        zeros = (group.kernel.new_zeros(len(group.kernel)) if group.bias is None else group.bias for group in groups)
        bias = editor.constant(torch.cat(list(zeros)), f"{node.name}_biases", origin=node)
    x = _gathered(editor, groups, node)
    padding = [height // 2, width // 2]
    arguments = (x, kernel, bias, [1, 1], padding, [1, 1], int(shape_of(node)[1]))
    return editor.call(aten.conv2d.default, arguments, origin=node)


def _gathered(editor: Editor, groups: list[Depthwise], node: fx.Node) -> fx.Node:
    """Every channel with the elements of its map that its group takes; whole rows of them where it takes these."""
    source = groups[0].source
    batch, channels, height, width = shape_of(source)
    rows, columns = (
        torch.cat([places.expand(len(group.kernel), -1) for group, places in zip(groups, taken, strict=True)])
        for taken in ([group.rows for group in groups], [group.columns for group in groups])
    )
    indices = torch.arange(channels)[:, None] * height + rows
    shape = [batch, channels * height, width]
    if not bool((columns == torch.arange(width)).all()):
        indices = indices[:, :, None] * width + columns[:, None]
        shape = [batch, channels * height * width]
    elif bool((rows == torch.arange(height)).all()):
        return source
    constant = editor.constant(indices.flatten(), f"{node.name}_places", origin=node)
    flat = editor.reshape(source, shape, origin=node)
    result = editor.call(aten.index_select.default, (flat, 1, constant), origin=node)
    return editor.reshape(result, [batch, channels, height, width], origin=node)


RULE = Rule("merge_depthwise", "normalise", find, replace, after=("decompose_rolls",))
