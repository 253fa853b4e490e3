"""Reads of a tensor's memory by strides become picks of its elements, which do not ask how it lies in memory.

`as_strided(x, size, stride, offset)` has a meaning of its own only where x lies in memory as its shape says. Every row
must read from itself alone, so that the batch stays symbolic.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from mlpdeploy.errors import NetworkError
from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.layout.view import size_of
from mlpdeploy.graph.tracing.place import place_of

aten = torch.ops.aten

STRIDED = (aten.as_strided.default, aten.as_strided_copy.default)


def resolve_strides(module: fx.GraphModule, network: str) -> None:
    """Replace each.

    Raises NetworkError, with the place in `network`, where what is read depends on how the tensor lies in memory, or
    lies in another row.
    """
    for node in list(module.graph.nodes):
        if node.target not in STRIDED:
            continue
        if (reason := _reason(node.args[0].meta["val"], node.meta["val"])) is not None:
            raise NetworkError(
                f"{network} reads memory by strides{reason} ({node.target}), in{place_of(node)}; write it with unfold, "
                "indexing or reshape"
            )
        editor = Editor(module, module.graph)
        with editor.before(node):
            picked = _picked(editor, node)
        node.replace_all_uses_with(picked)
        module.graph.erase_node(node)


def _reason(x: Tensor, read: Tensor) -> str | None:
    """Why what is read is no pick within rows of `x`, or within the whole of a constant."""
    if not x.is_contiguous() or x.storage_offset() != 0:
        return " from a tensor that is not contiguous"
    rows = _rows(x, read)
    row = math.prod(x.shape[rows:])
    if not all(isinstance(size_of(one), int) for one in (*read.shape[rows:], *read.stride(), read.storage_offset())):
        return " that depend on the batch"
    ends = [(int(size) - 1) * step for size, step in zip(read.shape[rows:], read.stride()[rows:], strict=True)]
    across = rows and read.stride(0) != row
    return " across rows" if across or int(read.storage_offset()) + sum(ends) >= row else None


def _rows(x: Tensor, read: Tensor) -> int:
    """1 where the first axis of both is the batch, 0 where there is none."""
    batch = size_of(x.shape[0]) if x.dim() else 1
    return int(not isinstance(batch, int) and read.dim() > 0 and size_of(read.shape[0]) == batch)


def _picked(editor: Editor, node: fx.Node) -> fx.Node:
    x: Any = node.args[0]
    value, read = x.meta["val"], node.meta["val"]
    rows = _rows(value, read)
    row = math.prod(value.shape[rows:])
    places = torch.arange(row).as_strided(
        [int(size) for size in read.shape[rows:]], read.stride()[rows:], int(read.storage_offset())
    )
    index = editor.constant(places.flatten(), f"{node.name}_places", origin=node)
    flat = editor.reshape(x, [*map(size_of, value.shape[:rows]), row], origin=node)
    found = editor.call(aten.index_select.default, (flat, rows, index), origin=node)
    return editor.reshape(found, [*map(size_of, read.shape)], origin=node)
