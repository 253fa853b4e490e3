"""Norms over the channels and the grid, for OpenVINO.

before: LayerNormalization over several axes, whose scale and shift broadcast along some of them: (1, c, 1, 1)
after:  the operations that it stands for in FP32, which OpenVINO fuses, then Mul by the scale and Add of the shift

ONNX lets the scale broadcast; OpenVINO 2026.4 reshapes it to the shape of what is normalised, which fails. An epsilon
in FP16 would be 0, or a subnormal number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mlpdeploy.engine.forms._edit import replaced, shapes_of


def rewrite(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The same model, each norm whose scale broadcasts as single operations."""
    shapes = shapes_of(model)
    scales = {one.name: list(one.dims) for one in model.graph.initializer}
    made: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type == "LayerNormalization" and node.input[1] in scales and (shape := shapes.get(node.input[0])):
            first = _attributes(node).get("axis", -1) % len(shape)
            if scales[node.input[1]] != shape[first:]:
                made[node.name] = _spread(node, list(range(first, len(shape))))
    return replaced(model, made), len(made)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _spread(node: onnx.NodeProto, over: list[int]) -> list[onnx.NodeProto]:
    """(x - mean) / sqrt(mean((x - mean)^2) + epsilon) * scale + shift, means over these axes."""
    made: list[onnx.NodeProto] = []

    def add(kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = f"{node.name}/{len(made)}"
        made.append(helper.make_node(kind, list(inputs), [output or name], name, **attributes))
        return output or name

    x, scale, *shift = node.input
    axes = add("Constant", value=numpy_helper.from_array(np.array(over, np.int64)))
    epsilon = add(
        "Constant", value=numpy_helper.from_array(np.array(_attributes(node).get("epsilon", 1e-5), np.float32))
    )
    wide = add("Cast", x, to=onnx.TensorProto.FLOAT)
    centred = add("Sub", wide, add("ReduceMean", wide, axes))
    variance = add("ReduceMean", add("Mul", centred, centred), axes)
    normalised = add("Div", centred, add("Sqrt", add("Add", variance, epsilon)))
    scaled = add("Mul", add("CastLike", normalised, x), scale, output="" if shift else node.output[0])
    if shift:
        add("Add", scaled, shift[0], output=node.output[0])
    return made
