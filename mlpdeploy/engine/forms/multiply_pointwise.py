"""Convolutions of one place beside codes are products from the left, for TensorRT-RTX.

before: codes (b, k, h, w) -> Conv with codes (n, k, 1, 1) and a bias (n) -> (b, n, h, w), several times
after:  codes (b, k, h, w) -> Reshape -> (b, k, h*w) -> codes (all n, k) @ -> + bias -> Reshape -> Split

before: (b, k, h, w) -> Conv with (n, k, 1, 1) -> activation -> codes (b, n, h, w)
after:  (b, k, h, w) -> Reshape -> (b, k, h*w) -> (n, k) @ -> + bias -> activation -> codes (b, n, h*w)

TensorRT-RTX 1.7 writes what a convolution of codes gives in FP32, and what a product of codes gives in FP16. Those that
read the same codes are one product, whose parts are read where they lie. Without codes a product makes those of its
activation itself, and behind a convolution they are a launch. Maps of an odd number of places stay: each channel of
theirs is padded to an even one in a launch of its own. A product without a bias gets one of zeros: its scales are then
multiplied by what reads it, and not in a launch of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mlpdeploy.engine.forms._edit import attributes, keep_read, readers_of, replaced, shapes_of

ELEMENTWISE = {
    *("Add", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Max", "Min", "Mish"),
    *("Mul", "Neg", "Pow", "Relu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Tanh"),
}


def rewrite(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The same model with such convolutions as products; and how many convolutions there are."""
    graph = _Graph(model)
    writer = _Writer(graph)
    together: dict[str, list[onnx.NodeProto]] = {}
    for node in filter(graph.is_pointwise, model.graph.node):
        if graph.takes_codes(node):
            together.setdefault(node.input[0], []).append(node)
        else:
            writer.activate(node)
    for nodes in together.values():
        writer.share(nodes)
    return writer.written(model)


class _Graph:
    """What makes and reads the tensors of a graph, and their shapes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.readers = readers_of(model)
        self.constants = {one.name: one for one in model.graph.initializer}
        self.shapes, self.outputs = shapes_of(model), {one.name for one in model.graph.output}

    def is_pointwise(self, node: onnx.NodeProto) -> bool:
        """Whether a node is a convolution with a weight of the file, of one place, of an even number of places."""
        if node.op_type != "Conv" or node.domain:
            return False
        told, weight, shape = attributes(node), self.weight(node), self.shapes.get(node.input[0], [])
        if weight is None or any(name not in self.constants for name in node.input[2:]):
            return False
        moved = any(told.get("pads", ())) or any(step != 1 for step in told.get("strides", ()))
        if moved or told.get("group", 1) != 1 or any(size != 1 for size in weight.dims[2:]):
            return False
        return len(shape) > 2 and 0 not in shape[1:] and math.prod(shape[2:]) % 2 == 0

    def takes_codes(self, node: onnx.NodeProto) -> bool:
        """Whether a convolution reads codes, of an activation and of its weight."""
        activation = self.makers.get(node.input[0])
        of_activation = activation is not None and _decodes(activation) and activation.input[0] not in self.constants
        return of_activation and node.input[1] in self.makers

    def codes_behind(self, node: onnx.NodeProto) -> tuple[list[onnx.NodeProto], set[str]] | None:
        """What decodes the codes of an activation of what a convolution without codes gives, where nothing else reads
        any of that; and all tensors from the convolution to these codes."""
        if node.input[1] not in self.constants:
            return None
        found = {node.output[0]}
        while inner := [one for one in self._behind(found) if self._is_elementwise(one, found)]:
            found |= {name for one in inner for name in one.output}
        last = self._behind(found)
        if len(last) != 1 or last[0].op_type != "QuantizeLinear" or len(found) == 1:
            return None
        found |= {*last[0].output}
        decoders = self._behind(found)
        if found & self.outputs or not all(map(_decodes, decoders)):
            return None
        scales = (name for one in (*last, *decoders) for name in one.input[1:])
        return (decoders, found) if all(map(self._is_number, scales)) else None

    def weight(self, node: onnx.NodeProto) -> onnx.TensorProto | None:
        """The weight of a convolution, or its codes, with one scale or one for each row; None of one that has none."""
        maker = self.makers.get(node.input[1])
        if maker is None:
            return self.constants.get(node.input[1])
        known = _decodes(maker) and all(name in self.constants for name in maker.input)
        by_row = known and (attributes(maker).get("axis", 1) == 0 or self._is_number(maker.input[1]))
        return self.constants[maker.input[0]] if by_row else None

    def outputs_of(self, node: onnx.NodeProto) -> int:
        weight = self.weight(node)
        assert weight is not None
        return int(weight.dims[0])

    def _behind(self, found: set[str]) -> list[onnx.NodeProto]:
        """The nodes that read one of these tensors, and give another."""
        readers = {one.output[0]: one for name in found for one in self.readers.get(name, ())}
        return [one for name, one in readers.items() if name not in found]

    def _is_elementwise(self, node: onnx.NodeProto, found: set[str]) -> bool:
        """Whether a node computes each number by itself, of what was found and single numbers of the file."""
        others = [name for name in node.input if name and name not in found]
        return node.op_type in ELEMENTWISE and not node.domain and all(map(self._is_number, others))

    def _is_number(self, name: str) -> bool:
        maker, tensor = self.makers.get(name), self.constants.get(name)
        if maker is not None and maker.op_type == "Constant":
            tensor = attributes(maker).get("value")
        return tensor is not None and not tensor.dims

    def values(self, name: str) -> np.ndarray:
        """A constant of the file."""
        return numpy_helper.to_array(self.constants[name])


class _Writer:
    """Collects what takes the place of nodes, the constants of that, and the tensors that have one axis for all places
    then, under the name that they had before."""

    def __init__(self, graph: _Graph) -> None:
        self.graph = graph
        self.nodes: dict[str, list[onnx.NodeProto]] = {}
        self.constants: list[onnx.TensorProto] = []
        self.flat: set[str] = set()
        self.count = 0

    def share(self, nodes: Sequence[onnx.NodeProto]) -> None:
        """Convolutions of the same codes become one product, of which they are parts."""
        results, given = [node.output[0] for node in nodes], nodes[0].input[0]
        counts, places = [self.graph.outputs_of(node) for node in nodes], self.graph.shapes[given][2:]
        whole = results[0] if len(results) == 1 else f"{given}/map"
        sizes = self._constant(f"{whole}/sizes", np.array([-1, sum(counts), *places]))
        made = self._product(nodes, f"{whole}/columns")
        made.append(helper.make_node("Reshape", [f"{whole}/columns", sizes], [whole], f"{nodes[0].name}/back"))
        if len(results) > 1:
            split = self._constant(f"{whole}/parts", np.array(counts))
            made.append(helper.make_node("Split", [whole, split], results, f"{nodes[0].name}/parts", axis=1))
        self.nodes |= {node.name: [] for node in nodes} | {nodes[0].name: made}
        self.count += len(nodes)

    def activate(self, node: onnx.NodeProto) -> None:
        """A convolution without codes becomes a product, where codes are made of its activation alone."""
        behind = self.graph.codes_behind(node)
        if behind is None:
            return
        decoders, flat = behind
        self.nodes[node.name] = self._product([node], node.output[0])
        for decoder in decoders:
            copy, (result,) = onnx.NodeProto(), decoder.output
            copy.CopyFrom(decoder)
            copy.output[0] = f"{result}/columns"
            sizes = self._constant(f"{result}/sizes", np.array([-1, *self.graph.shapes[node.output[0]][1:]]))
            back = helper.make_node("Reshape", [copy.output[0], sizes], [result], f"{decoder.name}/back")
            self.nodes[decoder.name] = [copy, back]
        self.flat |= flat
        self.count += 1

    def written(self, model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
        """A copy of the model with them, without what nothing reads any more, and how many convolutions it lacks."""
        if not self.count:
            return model, 0
        result = replaced(model, self.nodes)
        read = {name for node in result.graph.node for name in node.input} | self.graph.outputs
        nodes = [node for node in result.graph.node if node.op_type != "DequantizeLinear" or node.output[0] in read]
        del result.graph.node[:]
        result.graph.node.extend(nodes)
        keep_read(result, self.constants, self.flat)
        return result, self.count

    def _product(self, nodes: Sequence[onnx.NodeProto], result: str) -> list[onnx.NodeProto]:
        """The columns (b, all n, h*w) that convolutions of one tensor give; the product has the name of the first."""
        first, given = nodes[0], nodes[0].input[0]
        channels, *places = self.graph.shapes[given][1:]
        sizes = self._constant(f"{result}/read", np.array([-1, channels, math.prod(places)]))
        columns, rows, product = (f"{result}/{what}" for what in ("given", "rows", "product"))
        return [
            helper.make_node("Reshape", [given, sizes], [columns], f"{first.name}/columns"),
            *self._rows(nodes, rows),
            helper.make_node("MatMul", [rows, columns], [product], first.name),
            helper.make_node("Add", [product, self._bias(nodes, f"{result}/bias")], [result], f"{first.name}/bias"),
        ]

    def _rows(self, nodes: Sequence[onnx.NodeProto], result: str) -> list[onnx.NodeProto]:
        """The weights (n, k, 1, 1) of convolutions as one matrix (all n, k), with a scale for each row of codes."""
        graph = self.graph
        makers = [graph.makers[node.input[1]] for node in nodes if node.input[1] in graph.makers]
        weights = [graph.values(one) for one in ([maker.input[0] for maker in makers] or [nodes[0].input[1]])]
        matrix = np.concatenate([weight.reshape(len(weight), -1) for weight in weights])
        if not makers:
            self._constant(result, matrix)
            return []
        scales = [np.broadcast_to(graph.values(m.input[1]), len(w)) for m, w in zip(makers, weights, strict=True)]
        names = [self._constant(f"{result}/codes", matrix), self._constant(f"{result}/scales", np.concatenate(scales))]
        return [helper.make_node("DequantizeLinear", names, [result], f"{nodes[0].name}/rows", axis=0)]

    def _bias(self, nodes: Sequence[onnx.NodeProto], name: str) -> str:
        """The biases as a constant (all n, 1), zeros for convolutions that have none."""
        maker = self.graph.makers.get(nodes[0].input[1])
        dtype = self.graph.values(nodes[0].input[1] if maker is None else maker.input[1]).dtype
        given = [self.graph.values(node.input[2]) if len(node.input) > 2 else None for node in nodes]
        counts = map(self.graph.outputs_of, nodes)
        each = [np.zeros(count, dtype) if one is None else one for one, count in zip(given, counts, strict=True)]
        return self._constant(name, np.concatenate(each).reshape(-1, 1))

    def _constant(self, name: str, values: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(values, name))
        return name


def _decodes(node: onnx.NodeProto) -> bool:
    """Whether a node makes values of codes that do not have a scale for each block."""
    return node.op_type == "DequantizeLinear" and not node.domain and "block_size" not in attributes(node)
