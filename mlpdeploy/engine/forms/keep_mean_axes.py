"""Means that keep their axes, for OpenVINO's INT8.

before: ReduceMean without keepdims, read by Mul
after:  ReduceMean with keepdims, Squeeze, read by Mul

OpenVINO 2026.4 fuses a mean with the per-channel product and the quantisation behind it, and where the mean drops its
axes it then takes each channel's factor from another channel. A Squeeze in between keeps them apart.
"""

from __future__ import annotations

import onnx
from onnx import helper

from mlpdeploy.engine.forms._edit import replaced


def rewrite(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The same model with a Squeeze between every such mean and product."""
    multiplied = {name for node in model.graph.node if node.op_type == "Mul" for name in node.input}
    means = (node for node in model.graph.node if node.op_type == "ReduceMean" and node.output[0] in multiplied)
    made = {node.name: _kept(node) for node in means if _drops(node)}
    return replaced(model, made), len(made)


def _drops(node: onnx.NodeProto) -> bool:
    """Whether a mean over axes that are told drops them."""
    return len(node.input) > 1 and any(one.name == "keepdims" and not one.i for one in node.attribute)


def _kept(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    name, kept = node.output[0], f"{node.output[0]}/kept"
    mean = onnx.NodeProto()
    mean.CopyFrom(node)
    mean.output[0] = kept
    next(attribute for attribute in mean.attribute if attribute.name == "keepdims").i = 1
    return [mean, helper.make_node("Squeeze", [kept, node.input[1]], [name], f"{node.name}/squeeze")]
