"""Norms over the channels and the grid, for OpenVINO.

before: LayerNormalization over several axes, whose scale and shift broadcast along some of them: (1, c, 1, 1)
after:  the operations that it stands for in FP32, which OpenVINO fuses, then Mul by the scale and Add of the shift

ONNX lets the scale broadcast; OpenVINO 2026.4 reshapes it to the shape of what is normalised, which fails. An epsilon
in FP16 would be 0, or a subnormal number.
"""

from __future__ import annotations

import numpy as np
import onnx

from mlpdeploy.engine.forms._edit import Operations, attributes, replaced, shapes_of


def rewrite(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The same model, each norm whose scale broadcasts as single operations."""
    shapes = shapes_of(model)
    scales = {one.name: list(one.dims) for one in model.graph.initializer}
    made: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type == "LayerNormalization" and node.input[1] in scales and (shape := shapes.get(node.input[0])):
            first = attributes(node).get("axis", -1) % len(shape)
            if scales[node.input[1]] != shape[first:]:
                made[node.name] = _spread(node, list(range(first, len(shape))))
    return replaced(model, made), len(made)


def _spread(node: onnx.NodeProto, over: list[int]) -> list[onnx.NodeProto]:
    """(x - mean) / sqrt(mean((x - mean)^2) + epsilon) * scale + shift, means over these axes."""
    made = Operations(node)
    axes = made.constant(over, np.int64)
    epsilon = made.constant(attributes(node).get("epsilon", 1e-5), np.float32)
    _, centred, square = made.centred_mean(made.add("Cast", node.input[0], to=onnx.TensorProto.FLOAT), axes)
    variance = made.add("ReduceMean", square, axes)
    made.scaled(made.add("Div", centred, made.add("Sqrt", made.add("Add", variance, epsilon))))
    return made.nodes
