"""Convolutions of one place whose operands are codes are products from the left, for TensorRT-RTX.

before: codes (b, k, h, w) -> Conv with codes (n, k, 1, 1) and a bias (n) -> (b, n, h, w), several times
after:  codes (b, k, h, w) -> Reshape -> (b, k, h*w) -> codes (all n, k) @ -> + bias -> Reshape -> Split

TensorRT-RTX 1.7 writes what a convolution of codes gives in FP32, and what a product of codes gives in FP16. Those that
read the same codes are one product, whose parts are read where they lie. Maps of an odd number of places stay: each
channel of theirs is padded to an even one in a launch of its own. A product without a bias gets one of zeros: its
scales are then multiplied by what reads it, and not in a launch of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mlpdeploy.engine.forms._edit import attributes, replaced, shapes_of


def rewrite(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The same model with such convolutions as products; and how many convolutions there are."""
    graph = _Graph(model)
    together: dict[str, list[onnx.NodeProto]] = {}
    for node in filter(graph.is_pointwise, model.graph.node):
        together.setdefault(node.input[0], []).append(node)
    if not together:
        return model, 0
    made: dict[str, list[onnx.NodeProto]] = {}
    for first, *others in together.values():
        made |= {first.name: graph.product([first, *others])} | {one.name: [] for one in others}
    result = replaced(model, made)
    result.graph.initializer.extend(graph.made)
    _drop_unread(result)
    return result, len(made)


class _Graph:
    """What makes the tensors of a graph, and the constants that products are `made` of."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.constants = {one.name: one for one in model.graph.initializer}
        self.shapes = shapes_of(model)
        self.made: list[onnx.TensorProto] = []

    def is_pointwise(self, node: onnx.NodeProto) -> bool:
        """Whether a node is a convolution of codes with codes, a product at each of an even number of places."""
        if node.op_type != "Conv" or node.domain:
            return False
        activation, matrix = (self.makers.get(name) for name in node.input[:2])
        if activation is None or matrix is None or not self._decodes(activation) or not self._decodes(matrix):
            return False
        ours = [*node.input[2:], *matrix.input]
        if activation.input[0] in self.constants or any(name not in self.constants for name in ours):
            return False
        return _stays(node, self.constants[matrix.input[0]]) and self._is_even(node)

    def product(self, nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """What takes the place of convolutions of the same codes; the product has the name of the first."""
        first, given = nodes[0], nodes[0].input[0]
        channels, *places = self.shapes[given][1:]
        outputs = [self.constants[self.makers[node.input[1]].input[0]].dims[0] for node in nodes]
        made = f"{given}/{{}}".format
        sizes = self._constant(made("sizes"), np.array([-1, channels, math.prod(places)]))
        back = self._constant(made("back"), np.array([-1, sum(outputs), *places]))
        results = [node.output[0] for node in nodes]
        whole = results[0] if len(results) == 1 else made("map")
        written = [
            helper.make_node("Reshape", [given, sizes], [made("columns")], f"{first.name}/columns"),
            self._weight(nodes, made("rows")),
            helper.make_node("MatMul", [made("rows"), made("columns")], [made("product")], first.name),
            helper.make_node(
                "Add", [made("product"), self._bias(nodes, outputs)], [made("added")], f"{first.name}/bias"
            ),
            helper.make_node("Reshape", [made("added"), back], [whole], f"{first.name}/back"),
        ]
        if whole not in results:
            parts = self._constant(made("parts"), np.array(outputs))
            written.append(helper.make_node("Split", [whole, parts], results, f"{first.name}/parts", axis=1))
        return written

    def _decodes(self, node: onnx.NodeProto) -> bool:
        """Whether a node makes values of codes that do not have a scale for each block."""
        return node.op_type == "DequantizeLinear" and not node.domain and "block_size" not in attributes(node)

    def _is_even(self, node: onnx.NodeProto) -> bool:
        """Whether the map that a convolution reads has an even number of places; not where these are not known."""
        shape = self.shapes.get(node.input[0], [])
        return len(shape) > 2 and 0 not in shape[1:] and math.prod(shape[2:]) % 2 == 0

    def _weight(self, nodes: Sequence[onnx.NodeProto], result: str) -> onnx.NodeProto:
        """The weights (n, k, 1, 1) of convolutions as one matrix (all n, k), with a scale for each row."""
        makers = [self.makers[node.input[1]] for node in nodes]
        codes = [self._values(one.input[0]) for one in makers]
        matrices = [one.reshape(len(one), -1) for one in codes]
        scales = [
            np.broadcast_to(self._values(one.input[1]), len(rows)) for one, rows in zip(makers, codes, strict=True)
        ]
        names = [
            self._constant(f"{result}/codes", np.concatenate(matrices)),
            self._constant(f"{result}/scales", np.concatenate(scales)),
        ]
        return helper.make_node("DequantizeLinear", names, [result], makers[0].name, axis=0)

    def _bias(self, nodes: Sequence[onnx.NodeProto], outputs: Sequence[int]) -> str:
        """The biases as a constant (all n, 1), zeros for convolutions that have none."""
        scale = self._values(self.makers[nodes[0].input[1]].input[1])
        each = (
            self._values(node.input[2]) if len(node.input) > 2 else np.zeros(count, scale.dtype)
            for node, count in zip(nodes, outputs, strict=True)
        )
        return self._constant(f"{nodes[0].input[0]}/bias", np.concatenate([*each]).reshape(-1, 1))

    def _values(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self.constants[name])

    def _constant(self, name: str, values: np.ndarray) -> str:
        self.made.append(numpy_helper.from_array(values, name))
        return name


def _stays(node: onnx.NodeProto, weight: onnx.TensorProto) -> bool:
    """Whether what a convolution gives for a place comes from that place alone, and from all of its channels."""
    told = attributes(node)
    moved = any(told.get("pads", ())) or any(step != 1 for step in told.get("strides", ()))
    return not moved and told.get("group", 1) == 1 and all(size == 1 for size in weight.dims[2:])


def _drop_unread(model: onnx.ModelProto) -> None:
    """Leave out decoded weights that nothing reads any more, and constants, in place."""
    outputs = {one.name for one in model.graph.output}
    read = {name for node in model.graph.node for name in node.input} | outputs
    nodes = [node for node in model.graph.node if node.op_type != "DequantizeLinear" or node.output[0] in read]
    read = {name for node in nodes for name in node.input} | outputs
    constants = [one for one in model.graph.initializer if one.name in read]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(constants)
