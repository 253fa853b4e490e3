"""What computes each row of channels by itself computes on a matrix of rows, for TensorRT.

before: (b, t, c) -> LayerNormalization -> MatMul -> Gelu -> MatMul -> Add -> (b, t, c)
after:  (b, t, c) -> Reshape -> (b*t, c) -> the same -> Reshape -> (b, t, c)

TensorRT-RTX 1.7 multiplies rows by a weight as one matrix. In three axes it copies the residual stream into that matrix
and back, once a product, and launches biases by themselves; reshapes of a file launch nothing. Only what ends in a sum
of two activations, or before a transpose, is written so: elsewhere the kernels that read it were split instead. Rows of
an odd length it pads, and copies as matrices. Products of codes in three axes it takes for rows by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import cached_property

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mlpdeploy.engine.forms._edit import attributes, keep_read, readers_of, replaced, shapes_of

UNARY = {"Cast", "Erf", "Gelu", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Sqrt", "Tanh"}
BINARY = {"Add", "Div", "Mul", "Sub"}
CODES = {"DequantizeLinear", "QuantizeLinear"}


def rewrite(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The same model, each such part between reshapes; and how many products are in them."""
    graph = _Graph(model)
    names = {name for part in graph.parts() for name in part}
    if not names:
        return model, 0
    return _Writer(graph, names).written(model), sum(graph.nodes[name].op_type == "MatMul" for name in names)


class _Graph:
    """What reads and makes the tensors of a graph; operations go by the name of what they give."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = {node.output[0]: node for node in model.graph.node}
        self.constants = {one.name: one for one in model.graph.initializer}
        self.blocks = {
            name for name, node in self.nodes.items() if any(one.name == "block_size" for one in node.attribute)
        }
        self.decoded = {name: node for name, node in self.nodes.items() if self._is_decoded(node)}
        self.shapes, self.outputs = shapes_of(model), {one.name for one in model.graph.output}
        self.readers = readers_of(model)

    @cached_property
    def by_rows(self) -> dict[str, onnx.NodeProto]:
        """The operations that compute each row of channels by itself."""
        return {name: node for name, node in self.nodes.items() if self._is_by_rows(node)}

    def parts(self) -> list[set[str]]:
        """Products and what stands around them, as far as all of it is by rows; those that end well."""
        found = {name for name, node in self.by_rows.items() if node.op_type == "MatMul"}
        size = 0
        while size < len(found):
            size = len(found)
            found |= {name for name in self.by_rows.keys() - found if self._belongs(name, found)}
        while loose := {name for name in found if self._is_loose(name, found)}:
            found -= loose
        ending = (part for part in self._connected(found) if all(self._ends_well(name, part) for name in part))
        return [part for part in ending if self._gains(part)]

    def rows(self, name: str) -> bool:
        """Whether a tensor is an activation of three axes or more, whose sizes are known but for the first."""
        shape = self.shapes.get(name, [])
        return len(shape) > 2 and 0 not in shape[1:] and name not in self.constants

    def leaves(self, name: str, part: Collection[str]) -> bool:
        """Whether something else reads what an operation of a part gives."""
        return name in self.outputs or any(node.output[0] not in part for node in self.readers.get(name, ()))

    def _is_decoded(self, node: onnx.NodeProto) -> bool:
        """Whether a node makes a weight of codes, with a scale for each row or column."""
        weight = node.op_type == "DequantizeLinear" and all(one in self.constants for one in node.input)
        return weight and node.output[0] not in self.blocks

    def _gains(self, part: Collection[str]) -> bool:
        """Whether a product of a part takes something else than codes, or has four axes or more."""
        products = [self.nodes[name] for name in part if self.nodes[name].op_type == "MatMul"]
        return any(one.input[1] not in self.decoded or len(self.shapes[one.output[0]]) > 3 for one in products)

    def _is_by_rows(self, node: onnx.NodeProto) -> bool:
        if node.domain or not any(map(self.rows, node.input)) or len(node.output) != 1:
            return False
        first, *others = node.input
        if node.op_type == "MatMul":
            return self.rows(first) and self._is_constant(others[0], 2) and self._is_even(first, node.output[0])
        if node.op_type == "LayerNormalization":
            last = attributes(node).get("axis", -1) in (-1, len(self.shapes[first]) - 1)
            return last and all(self._is_constant(name, 1) for name in others)
        if node.op_type in BINARY:
            shape = self.shapes.get(node.output[0])
            return all(self._is_constant(n, 1) or (self.rows(n) and self.shapes[n] == shape) for n in node.input)
        if node.op_type in CODES:
            return first not in self.constants and all(self._is_constant(name, 0) for name in others)
        return node.op_type in UNARY

    def _is_even(self, *names: str) -> bool:
        """Whether the rows of tensors have even lengths: those of others TensorRT pads, and copies what it pads."""
        return all(self.shapes[name][-1] % 2 == 0 for name in names if self.rows(name))

    def _is_constant(self, name: str, axes: int) -> bool:
        """Whether a tensor is a number of the file with no more than so many axes, behind some of size 1.

        A weight of blocks of codes has two axes and no other form.
        """
        if name in self.blocks:
            return axes == 2
        if name in self.decoded:
            return axes == 2 and self._is_constant(self.decoded[name].input[0], 2)
        if name not in self.constants:
            return False
        dims = [*self.constants[name].dims]
        return all(size == 1 for size in dims[: len(dims) - axes])

    def _belongs(self, name: str, found: Collection[str]) -> bool:
        """Whether an operation stands behind one that was found, or before such ones alone.

        A norm in front of something else is no part: it ends where its row does.
        """
        if not self.leaves(name, found) and name in self.readers:
            return True
        node = self.nodes[name]
        return node.op_type != "LayerNormalization" and any(source in found for source in node.input)

    def _is_loose(self, name: str, found: Collection[str]) -> bool:
        """Whether an operation, no product, only hands on to others what it should not end with."""
        read = any(reader.output[0] in found for reader in self.readers.get(name, ()))
        return not read and self.nodes[name].op_type != "MatMul" and not self._ends_well(name, found)

    def _connected(self, found: set[str]) -> Iterator[set[str]]:
        waiting = set(found)
        while waiting:
            part, front = set[str](), {waiting.pop()}
            while front:
                part |= front
                around = {name for one in front for name in self._beside(one)}
                front = (around & found) - part
            waiting -= part
            yield part

    def _beside(self, name: str) -> Iterable[str]:
        return [*self.nodes[name].input, *(node.output[0] for node in self.readers.get(name, ()))]

    def _ends_well(self, name: str, part: Collection[str]) -> bool:
        if not self.leaves(name, part):
            return True
        node = self.nodes[name]
        others = [reader for reader in self.readers.get(name, ()) if reader.output[0] not in part]
        transposed = bool(others) and name not in self.outputs and all(one.op_type == "Transpose" for one in others)
        return transposed or (node.op_type == "Add" and all(map(self.rows, node.input)))


class _Writer:
    """Writes the nodes of `parts` on matrices, and reshapes where rows come in and go out."""

    def __init__(self, graph: _Graph, parts: Collection[str]) -> None:
        self.graph, self.parts = graph, parts
        self.constants: list[onnx.TensorProto] = []
        self.flat: dict[str, str] = {}

    def written(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A copy of the model with them."""
        nodes = (node for node in model.graph.node if node.output[0] in self.parts)
        made = {node.name: self._flattened(node) for node in nodes}
        unread = (node for name, node in self.graph.decoded.items() if not self.graph.leaves(name, self.parts))
        result = replaced(model, made | {node.name: [] for node in unread})
        keep_read(result, self.constants)
        return result

    def _flattened(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        made, copy, (name,) = list[onnx.NodeProto](), onnx.NodeProto(), node.output
        copy.CopyFrom(node)
        for place, source in enumerate(node.input):
            copy.input[place] = self._read(source, f"{node.name}/rows{place}", made)
        for attribute in copy.attribute:
            if attribute.name == "axis":
                attribute.i = -1
        copy.output[0] = self.flat[name] = f"{name}/rows"
        made.append(copy)
        if self.graph.leaves(name, self.parts):
            made.append(self._reshape(copy.output[0], name, [-1, *self.graph.shapes[name][1:]], f"{node.name}/back"))
        return made

    def _read(self, name: str, called: str, made: list[onnx.NodeProto]) -> str:
        """A tensor as a matrix of rows, by a reshape that is called so and goes to what was `made`; a number of the
        file without axes in front."""
        if name in self.graph.blocks:
            return name
        if name not in self.flat:
            self.flat[name] = f"{name}/rows"
            if name in self.graph.constants:
                self.constants.append(_without_leading(self.graph.constants[name], self.flat[name]))
            elif name in self.graph.decoded:
                made.append(self._decode(self.graph.decoded[name], made))
            else:
                made.append(self._reshape(name, self.flat[name], [-1, self.graph.shapes[name][-1]], called))
        return self.flat[name]

    def _decode(self, node: onnx.NodeProto, made: list[onnx.NodeProto]) -> onnx.NodeProto:
        """A weight of codes as a matrix."""
        copy, (name,) = onnx.NodeProto(), node.output
        copy.CopyFrom(node)
        copy.name = f"{node.name}/rows"
        copy.input[0], copy.output[0] = self._read(node.input[0], "", made), self.flat[name]
        leading = max(len(self.graph.constants[node.input[0]].dims) - 2, 0)
        for attribute in copy.attribute:
            if attribute.name == "axis" and attribute.i >= 0:
                attribute.i -= leading
        return copy

    def _reshape(self, source: str, result: str, shape: list[int], called: str) -> onnx.NodeProto:
        sizes = f"{result}/shape"
        self.constants.append(numpy_helper.from_array(np.array(shape, np.int64), sizes))
        return helper.make_node("Reshape", [source, sizes], [result], called)


def _without_leading(constant: onnx.TensorProto, name: str) -> onnx.TensorProto:
    """The same numbers with the last two axes alone, all others being of size 1."""
    copy = onnx.TensorProto()
    copy.CopyFrom(constant)
    copy.name = name
    dims = [*constant.dims][-2:]
    del copy.dims[:]
    copy.dims.extend(dims)
    return copy
