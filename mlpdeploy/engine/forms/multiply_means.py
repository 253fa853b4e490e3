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

from mlpdeploy.engine.forms._edit import attributes, replaced


def rewrite(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The same model with its FP32 means over the middle axes as products."""
    graph, made = model.graph, dict[str, list[onnx.NodeProto]]()
    shapes = {value.name: _shape(value) for value in (*graph.value_info, *graph.input)}
    axes = {one.name: numpy_helper.to_array(one).tolist() for one in graph.initializer if len(one.dims) < 2}
    for node in graph.node:
        if node.op_type != "ReduceMean" or len(node.input) != 2 or node.domain:
            continue
        shape, over = shapes.get(node.input[0]), axes.get(node.input[1])
        keeps = attributes(node).get("keepdims", 1)
        middle = None if shape is None or over is None else _middle(shape, np.atleast_1d(over).tolist())
        if shape is not None and middle is not None and not keeps:
            made[node.name] = _product(node, math.prod(middle), shape[-1])
    return replaced(model, made), len(made)


def _product(node: onnx.NodeProto, count: int, channels: int | None) -> list[onnx.NodeProto]:
    share, merge, middle, merged, mean = (f"{node.name}/{what}" for what in ("share", "shape", "one", "merged", "mean"))
    values = {share: np.full((1, count), 1 / count, np.float32), merge: np.array([0, count, channels]),
              middle: np.array([1])}  # fmt: skip
    constants = [
        helper.make_node("Constant", [], [name], name, value=numpy_helper.from_array(value))
        for name, value in values.items()
    ]
    return [
        *constants,
        helper.make_node("Reshape", [node.input[0], merge], [merged], merged),
        helper.make_node("MatMul", [share, merged], [mean], mean),
        helper.make_node("Squeeze", [mean, middle], [node.output[0]], f"{node.name}/squeeze"),
    ]


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
