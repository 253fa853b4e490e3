"""Norms over the channels and the grid, for OpenVINO.

before: LayerNormalization over several axes, whose scale and shift broadcast: (1, c, 1, 1)
after:  the operations that it stands for, which OpenVINO fuses, then Mul by the scale and Add of the shift

ONNX lets the scale broadcast; OpenVINO 2026.4 reshapes it to the shape of what is normalised, which fails.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mlpdeploy.engine.backends._replaced import replaced


def spread_norms(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model, each norm with a scale of several axes as single operations."""
    ranks = {one.name: len(one.dims) for one in model.graph.initializer}
    made = {
        node.name: _spread(node, ranks[node.input[1]])
        for node in model.graph.node
        if node.op_type == "LayerNormalization" and ranks.get(node.input[1], 1) > 1
    }
    return replaced(model, made)


def _spread(node: onnx.NodeProto, rank: int) -> list[onnx.NodeProto]:
    """(x - mean) / sqrt(mean((x - mean)^2) + epsilon) * scale + shift, means over the axes from `axis` on."""
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    made: list[onnx.NodeProto] = []

    def add(kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = f"{node.name}/{len(made)}"
        made.append(helper.make_node(kind, list(inputs), [output or name], name, **attributes))
        return output or name

    x, scale, *shift = node.input
    axes = add("Constant", value=numpy_helper.from_array(np.arange(given["axis"], rank, dtype=np.int64)))
    epsilon = add("Constant", value=numpy_helper.from_array(np.array(given.get("epsilon", 1e-5), np.float32)))
    centred = add("Sub", x, add("ReduceMean", x, axes))
    variance = add("ReduceMean", add("Mul", centred, centred), axes)
    deviation = add("Sqrt", add("Add", variance, add("CastLike", epsilon, x)))
    scaled = add("Mul", add("Div", centred, deviation), scale, output="" if shift else node.output[0])
    if shift:
        add("Add", scaled, shift[0], output=node.output[0])
    return made
