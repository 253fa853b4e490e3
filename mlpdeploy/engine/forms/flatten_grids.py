"""Transposes between channels first and channels last move a flat grid, for OpenVINO.

before: (b, c, h, w) -> Transpose -> (b, h, w, c), and back
after:  (b, c, h, w) -> Reshape -> (b, c, h*w) -> Transpose -> (b, h*w, c) -> Reshape -> (b, h, w, c)

OpenVINO 2026.4 takes a transpose of four dimensions beside a convolution for a choice of layout, which it then keeps
for every residual addition behind it, with a reorder in front of each.
"""

from __future__ import annotations

import onnx
from onnx import helper

from mlpdeploy.engine.forms._edit import attributes, replaced, shapes_of

LAST, FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


def rewrite(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The same model, each such transpose of an activation between two reshapes."""
    shapes = shapes_of(model)
    made = {node.name: nodes for node in model.graph.node if (nodes := _flattened(node, shapes)) is not None}
    return replaced(model, made), len(made)


def _flattened(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> list[onnx.NodeProto] | None:
    if node.op_type != "Transpose" or node.domain:
        return None
    order = attributes(node).get("perm")
    source, result = shapes.get(node.input[0], []), shapes.get(node.output[0], [])
    if order not in (LAST, FIRST) or 0 in (*source[1:], *result[1:]) or not source or not result:
        return None
    channels = source[1] if order == LAST else source[3]
    flat = [0, channels, -1] if order == LAST else [0, -1, channels]
    names = [f"{node.name}/{part}" for part in ("flat", "grid", "reshaped", "moved")]
    return [
        helper.make_node("Constant", [], [names[0]], names[0], value_ints=flat),
        helper.make_node("Constant", [], [names[1]], names[1], value_ints=[0, *result[1:]]),
        helper.make_node("Reshape", [node.input[0], names[0]], [names[2]], names[2]),
        helper.make_node("Transpose", [names[2]], [names[3]], names[3], perm=[0, 2, 1]),
        helper.make_node("Reshape", [names[3], names[1]], list(node.output), f"{node.name}/back"),
    ]
