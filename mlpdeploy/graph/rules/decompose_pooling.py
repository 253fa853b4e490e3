"""Pooling of windows that end behind the padding, or with a divisor of its own, becomes pooling of whole windows.

before: avg_pool2d(x, ceil_mode, count_include_pad, divisor_override) · max_pool2d(x, ceil_mode)
after:  avg_pool2d(pad(x)) * shares                                   · max_pool2d(pad(x))

Engines leave out such options, or disagree on what a window that is not whole is divided by. `shares` are numbers of
the place alone: what the window is divided by here over what it is divided by there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.kinds import arguments, shape_of
from mlpdeploy.graph.rule import Refused, Rule

aten = torch.ops.aten

AVERAGES: dict[Any, int] = {aten.avg_pool1d.default: 1, aten.avg_pool2d.default: 2, aten.avg_pool3d.default: 3}
MAXIMA: dict[Any, int] = {aten.max_pool1d.default: 1, aten.max_pool2d.default: 2, aten.max_pool3d.default: 3}
"""Pooling by the number of axes that it pools, which are the last ones."""

Windows = tuple[list[int], list[int], list[int], list[int]]


def find(editor: Editor, node: fx.Node) -> list[int] | Refused | None:
    """The sizes that are pooled, where an engine would not pool them so."""
    rank = AVERAGES.get(node.target) or MAXIMA.get(node.target)
    if rank is None:
        return None
    given = arguments(node)
    if not given["ceil_mode"] and given.get("divisor_override") is None:
        return None
    sizes = [size for size in shape_of(node.all_input_nodes[0])[-rank:] if isinstance(size, int)]
    return sizes if len(sizes) == rank else Refused("the size of what it pools is not fixed")


def replace(editor: Editor, node: fx.Node, sizes: list[int]) -> fx.Node:
    """The same pooling of what is padded to whole windows."""
    windows = _windows(arguments(node), len(sizes))
    pooled = _average if node.target in AVERAGES else _maximum
    return pooled(editor, node, sizes, windows)


def _average(editor: Editor, node: fx.Node, sizes: list[int], windows: Windows) -> fx.Node:
    kernel, stride, padding, _ = windows
    ends = _ends(node, sizes, windows)
    pads = [side for start, end in zip(reversed(padding), reversed(ends), strict=True) for side in (start, end)]
    x = node.all_input_nodes[0]
    padded = editor.call(aten.constant_pad_nd.default, (x, pads, 0.0), origin=node) if any(pads) else x
    result = editor.call(node.target, (padded, kernel, stride), origin=node)
    ones = torch.ones(1, *sizes, dtype=torch.float64)
    divided = node.target(ones, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    whole = node.target(aten.constant_pad_nd.default(ones, pads, 0.0), kernel, stride)  # type: ignore[operator]
    shares = (divided / whole).to(node.meta["val"].dtype)
    if bool((shares == 1).all()):
        return result
    constant = editor.constant(shares, f"{node.name}_shares", origin=node)
    return editor.call(aten.mul.Tensor, (result, constant), origin=node)


def _maximum(editor: Editor, node: fx.Node, sizes: list[int], windows: Windows) -> fx.Node:
    beyond = [max(0, end - start) for start, end in zip(windows[2], _ends(node, sizes, windows), strict=True)]
    x = node.all_input_nodes[0]
    if any(beyond):
        # As low as can be: a window of a dilated kernel need not reach the last element, which could stand in for it.
        pads = [side for end in reversed(beyond) for side in (0, end)]
        x = editor.call(aten.constant_pad_nd.default, (x, pads, float("-inf")), origin=node)
    return editor.call(node.target, (x, *windows), origin=node)


def _windows(given: dict[str, Any], rank: int) -> Windows:
    """Kernel, stride, padding and dilation, a number for each axis."""

    def each(value: Any) -> list[int]:
        values = [value] if isinstance(value, int) else list(value)
        return values * rank if len(values) == 1 else values

    kernel = each(given["kernel_size"])
    return kernel, each(given["stride"] or kernel), each(given["padding"]), each(given.get("dilation", 1))


def _ends(node: fx.Node, sizes: Sequence[int], windows: Windows) -> list[int]:
    """How many elements the last window reaches beyond each axis, 0 where it ends inside."""
    axes = zip(sizes, shape_of(node)[-len(sizes) :], *windows, strict=True)
    return [
        max(0, (int(count) - 1) * stride + dilation * (kernel - 1) + 1 - padding - size)
        for size, count, kernel, stride, padding, dilation in axes
    ]


RULE = Rule("decompose_pooling", "normalise", find, replace)
