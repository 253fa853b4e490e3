"""Means that keep their axes, for OpenVINO's INT8.

before: ReduceMean without keepdims, read by Mul
after:  ReduceMean with keepdims, Squeeze, read by Mul

OpenVINO 2026.4 fuses a mean with the per-channel product and the quantisation behind it, and where the mean drops its
axes it then takes each channel's factor from another channel. A Squeeze in between keeps them apart.
"""

from __future__ import annotations

import onnx
from onnx import helper


def keep_axes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with a Squeeze between every such mean and product."""
    multiplied = {name for node in model.graph.node if node.op_type == "Mul" for name in node.input}
    means = {n.name for n in model.graph.node if n.op_type == "ReduceMean" and n.output[0] in multiplied}
    if not means:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    nodes = list(result.graph.node)
    del result.graph.node[:]
    for node in nodes:
        keeps = next((attribute for attribute in node.attribute if attribute.name == "keepdims"), None)
        result.graph.node.append(node)
        if node.name not in means or keeps is None or keeps.i or len(node.input) < 2:
            continue
        name = node.output[0]
        kept = result.graph.node[-1]
        kept.output[0] = f"{name}/kept"
        next(attribute for attribute in kept.attribute if attribute.name == "keepdims").i = 1
        squeeze = helper.make_node("Squeeze", [f"{name}/kept", node.input[1]], [name], f"{node.name}/squeeze")
        result.graph.node.append(squeeze)
    return result
