"""Means over all axes between the batch and the channels as products, for ONNX Runtime.

before: ReduceMean of (b, h, w, c) over h and w
after:  (1/n ... 1/n) @ (b, h*w, c), the same sum of products

ONNX Runtime walks such a mean channel by channel; `benchmarks/forms.py` measures both. In FP32 only: 1/n is no FP16
number.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import helper, numpy_helper


def means_as_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with its FP32 means over the middle axes as products."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    shapes = {value.name: _shape(value) for value in (*graph.value_info, *graph.input)}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        shape = shapes.get(node.input[0]) if node.op_type == "ReduceMean" and len(node.input) == 2 else None
        axes = constants.get(node.input[1]) if shape else None
        middle = None if shape is None or axes is None else _middle(shape, numpy_helper.to_array(axes).tolist())
        keep = next((attribute.i for attribute in node.attribute if attribute.name == "keepdims"), 1)
        if shape is None or middle is None or keep:
            graph.node.append(node)
            continue
        count = math.prod(middle)
        name = node.output[0]
        graph.initializer.append(numpy_helper.from_array(np.full((1, count), 1 / count, np.float32), f"{name}/share"))
        graph.initializer.append(numpy_helper.from_array(np.array([0, count, shape[-1]]), f"{name}/merge"))
        graph.initializer.append(numpy_helper.from_array(np.array([1]), f"{name}/middle"))
        graph.node.extend(
            [
                helper.make_node("Reshape", [node.input[0], f"{name}/merge"], [f"{name}/merged"], f"{node.name}/merge"),
                helper.make_node("MatMul", [f"{name}/share", f"{name}/merged"], [f"{name}/mean"], f"{node.name}/mean"),
                helper.make_node("Squeeze", [f"{name}/mean", f"{name}/middle"], [name], f"{node.name}/squeeze"),
            ]
        )
    return result


def _shape(value: onnx.ValueInfoProto) -> list[int | None] | None:
    """The shape of an FP32 value, None for the sizes that are not fixed."""
    kind = value.type.tensor_type
    if kind.elem_type != onnx.TensorProto.FLOAT or not kind.HasField("shape"):
        return None
    return [size.dim_value if size.HasField("dim_value") else None for size in kind.shape.dim]


def _middle(shape: list[int | None], axes: list[int]) -> list[int] | None:
    """The sizes of the axes where they are all but the first and the last, and known; else None."""
    sizes = [size for size in shape[1:-1] if size is not None]
    between = sorted(axis % len(shape) for axis in axes) == list(range(1, len(shape) - 1))
    return sizes if between and len(sizes) == len(shape) - 2 and sizes and shape[-1] is not None else None
