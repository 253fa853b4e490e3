"""A map whose rows of channels begin a residual stream is turned before its places become one axis, for TensorRT.

before: map (b, c, h, w) -> Reshape -> (b, c, h*w) -> Transpose -> (b, h*w, c) -> Add(product of rows)
after:  map (b, c, h, w) -> Transpose -> (b, h, w, c) -> Reshape -> (b, h*w, c) -> Add(product of rows)

TensorRT-RTX 1.7 turns the map within the norm that reads it first, and copies it once more for a sum with rows that are
a matrix to it. Where the other term is no product of rows, nothing is copied, and nothing is turned here.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mlpdeploy.engine.forms._edit import attributes, replaced, shapes_of


def rewrite(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The same model with such maps turned first; and how many there are."""
    graph = _Graph(model)
    nodes, constants = dict[str, list[onnx.NodeProto]](), list[onnx.TensorProto]()
    for transpose in model.graph.node:
        reshape = graph.reshape_of(transpose)
        if reshape is None or not graph.begins_stream(transpose.output[0]):
            continue
        name = transpose.output[0]
        sizes = numpy_helper.from_array(np.array([-1, *graph.shapes[name][1:]], np.int64), f"{name}/sizes")
        turned = f"{name}/turned"
        constants.append(sizes)
        nodes[reshape.name] = []
        nodes[transpose.name] = [
            helper.make_node("Transpose", [reshape.input[0]], [turned], transpose.name, perm=[0, 2, 3, 1]),
            helper.make_node("Reshape", [turned, sizes.name], [name], f"{transpose.name}/rows"),
        ]
    result = replaced(model, nodes)
    result.graph.initializer.extend(constants)
    return result, len(constants)


class _Graph:
    """What makes and reads the tensors of a graph, and their shapes, 0 for an unknown batch."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.made = {name: node for node in model.graph.node for name in node.output}
        self.constants = {one.name for one in model.graph.initializer}
        self.shapes = shapes_of(model)
        self.uses = Counter(name for node in model.graph.node for name in node.input)
        self.uses.update(one.name for one in model.graph.output)
        self.sums = [node for node in model.graph.node if node.op_type == "Add" and not node.domain]

    def reshape_of(self, transpose: onnx.NodeProto) -> onnx.NodeProto | None:
        """What makes one axis of the places of the map that a node turns; None where a node does something else."""
        if transpose.op_type != "Transpose" or attributes(transpose).get("perm") != [0, 2, 1]:
            return None
        reshape = self.made.get(transpose.input[0])
        if reshape is None or reshape.op_type != "Reshape" or self.uses[reshape.output[0]] != 1:
            return None
        before, after = (self.shapes.get(name, []) for name in (reshape.input[0], reshape.output[0]))
        if len(before) != 4 or 0 in before[1:]:
            return None
        _, channels, height, width = before
        return reshape if after[1:] == [channels, height * width] else None

    def begins_stream(self, rows: str) -> bool:
        """Whether rows are a term of a sum with a product of other rows."""
        terms = (self._others(node, rows) for node in self.sums if rows in node.input)
        return any(self._is_product(name) for names in terms for name in names)

    def _others(self, node: onnx.NodeProto, name: str) -> list[str]:
        return [one for one in node.input if one != name]

    def _is_product(self, name: str) -> bool:
        """Whether a tensor is a product with a matrix of the file from the right, and perhaps a bias."""
        node = self.made.get(name)
        if node is None:
            return False
        if node.op_type == "Add":
            terms = [one for one in node.input if one not in self.constants]
            return len(terms) == 1 and self._is_product(terms[0])
        return node.op_type == "MatMul" and node.input[0] not in self.constants and node.input[1] in self.constants
