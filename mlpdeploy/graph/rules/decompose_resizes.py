"""Resizing that smooths what it makes smaller becomes two projections, of the rows and of the columns.

before: interpolate(x, size, mode="bilinear" or "bicubic", antialias=True)
after:  linear along the last axis, then along the one before it

Such a resize of a fixed size is linear and acts on either axis alone; engines that know the option differ in it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.kinds import arguments, shape_of
from mlpdeploy.graph.rule import Refused, Rule

aten = torch.ops.aten

RESIZES: dict[Any, Any] = {
    aten._upsample_bilinear2d_aa.vec: aten._upsample_bilinear2d_aa.default,
    aten._upsample_bilinear2d_aa.default: aten._upsample_bilinear2d_aa.default,
    aten._upsample_bicubic2d_aa.vec: aten._upsample_bicubic2d_aa.default,
    aten._upsample_bicubic2d_aa.default: aten._upsample_bicubic2d_aa.default,
}


def find(editor: Editor, node: fx.Node) -> bool | Refused | None:
    """Whether it is such a resize."""
    if node.target not in RESIZES:
        return None
    sizes = (*shape_of(node.all_input_nodes[0])[-2:], *shape_of(node)[-2:])
    return all(isinstance(size, int) for size in sizes) or Refused("its size is not fixed")


def replace(editor: Editor, node: fx.Node, _: bool) -> fx.Node:
    """The projections."""
    given, x = arguments(node), node.all_input_nodes[0]
    before, after = shape_of(x), shape_of(node)
    for axis, scale in zip((-1, -2), reversed(_scales(given)), strict=True):
        matrix = _matrix(RESIZES[node.target], int(before[axis]), int(after[axis]), given["align_corners"], scale)
        x = editor.project(x, len(before) + axis, matrix, f"{node.name}_matrix", origin=node)
    return x


def _scales(given: dict[str, Any]) -> list[float | None]:
    """The factor that was asked for along rows and columns, by which positions are computed; None where a size was."""
    if "scale_factors" in given:
        return list(given["scale_factors"] or (None, None))
    return [given["scales_h"], given["scales_w"]]


def _matrix(resize: Any, before: int, after: int, align_corners: bool, scale: float | None) -> Tensor:
    """What the resize makes of each unit vector, (after, before)."""
    units = torch.eye(before, dtype=torch.float64)[None, None]
    resized: Tensor = resize(units, [before, after], align_corners, None, scale)
    return resized[0, 0].T


RULE = Rule("decompose_resizes", "normalise", find, replace)
