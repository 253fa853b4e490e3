"""An operand of a product that is turned as a whole before it is parted is parted first and turned last, for TensorRT.

before: k (b, n, c) -> Transpose -> (b, c, n) -> Reshape -> (b, h, d, n) -> MatMul(q, .)        (keys of attention)
after:  k (b, n, c) -> Reshape -> (b, n, h, d) -> Transpose -> (b, h, n, d) -> Transpose -> (b, h, d, n) -> MatMul(q, .)

TensorRT-RTX 1.7 multiplies by an operand that is turned right in front of it without a launch for that. Where both
transposes are written as one, it ends with a segmentation fault on some networks.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mlpdeploy.engine.forms._edit import attributes, replaced, shapes_of


@dataclass(frozen=True)
class _Turned:
    """The two nodes in front of a product, and the shapes of what goes in and comes out, 0 for an unknown batch."""

    transpose: onnx.NodeProto
    reshape: onnx.NodeProto
    before: list[int]
    after: list[int]


def rewrite(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The same model with such operands turned last; and how many there are."""
    found = _found(model)
    nodes, constants = dict[str, list[onnx.NodeProto]](), list[onnx.TensorProto]()
    for one in found:
        last = len(one.after) - 1
        name, outer = one.reshape.output[0], range(last - 2)
        sizes = numpy_helper.from_array(
            np.array([-1, *one.after[1 : last - 2], one.after[last], *one.after[last - 2 : last]], np.int64),
            f"{name}/sizes",
        )
        constants.append(sizes)
        nodes[one.transpose.name] = [
            helper.make_node("Reshape", [one.transpose.input[0], sizes.name], [f"{name}/parted"], one.transpose.name)
        ]
        nodes[one.reshape.name] = [
            helper.make_node(
                "Transpose", [f"{name}/parted"], [f"{name}/moved"], f"{one.reshape.name}/moved",
                perm=[*outer, last - 1, last - 2, last],
            ),
            helper.make_node(
                "Transpose", [f"{name}/moved"], [name], one.reshape.name, perm=[*outer, last - 2, last, last - 1]
            ),
        ]  # fmt: skip
    result = replaced(model, nodes)
    result.graph.initializer.extend(constants)
    return result, len(found)


def _found(model: onnx.ModelProto) -> list[_Turned]:
    made = {name: node for node in model.graph.node for name in node.output}
    read = Counter(name for node in model.graph.node for name in node.input)
    read.update(one.name for one in model.graph.output)
    shapes, found = shapes_of(model), list[_Turned]()
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.domain or read[node.input[1]] != 1:
            continue
        reshape = made.get(node.input[1])
        transpose = made.get(reshape.input[0]) if reshape is not None and reshape.op_type == "Reshape" else None
        if reshape is None or transpose is None or transpose.op_type != "Transpose" or read[transpose.output[0]] != 1:
            continue
        one = _Turned(transpose, reshape, shapes.get(transpose.input[0], []), shapes.get(reshape.output[0], []))
        if _is_turned(one):
            found.append(one)
    return found


def _is_turned(one: _Turned) -> bool:
    """Whether the last two axes change places and nothing else does, and the one that is last then is not parted."""
    rank = len(one.before)
    order = attributes(one.transpose).get("perm", [])
    if rank < 3 or order != [*range(rank - 2), rank - 1, rank - 2] or 0 in (*one.before[1:], *one.after[1:]):
        return False
    *outer, rows, columns = one.before
    return (
        len(one.after) == rank + 1
        and one.after[:-3] == outer
        and one.after[-3] * one.after[-2] == columns
        and (one.after[-1] == rows)
    )
