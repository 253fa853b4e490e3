"""Norms over the channels and the places of a map take their mean and variance in two stages, for TensorRT.

before: LayerNormalization over axes 1, 2 and 3 of x (b, c, h, w), whose scale and shift are (1, c, 1, 1)
after:  mean m_i and variance v_i of the c channels of each place i; then m = mean(m_i), v = mean(v_i + (m_i - m)^2);
        then (x - m) / sqrt(v + epsilon) of x as (b, c*h*w), back to (b, c, h, w), * scale + shift; all but the last
        two steps in FP32

A block reduces rows by itself. TensorRT-RTX 1.7 normalises a map of less than 2^14 numbers in one launch; of a larger
one blocks share each sum and wait for each other, in five launches that read and write the map five times. In stages
they are three, and three times. The last step reads the map as one row: of one cast that all read, the first launch
writes a map in FP32. In which axes the first stage is was found by counting launches: over the channels where that
leaves more than 256 rows and less than 2^14 for the second, over the last axis otherwise, or over both.
Source of the sum of variances: Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance".
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from mlpdeploy.engine.forms._edit import Operations, attributes, replaced, shapes_of

_BLOCK = 2**14
"""Numbers from which on TensorRT-RTX shares a row among blocks."""
_FEW = 256
"""Rows up to which the second stage takes two launches, if the first was over channels."""


def rewrite(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The same model with such norms in stages; and how many there are."""
    shapes = shapes_of(model)
    made = {
        node.name: _staged(node, shape, within)
        for node in model.graph.node
        if node.op_type == "LayerNormalization"
        and _is_over_map(node, shape := shapes.get(node.input[0], []))
        and (within := _first_stage(shape))
    }
    return replaced(model, made), len(made)


def _is_over_map(node: onnx.NodeProto, shape: list[int]) -> bool:
    """Whether a norm is over all axes but the first, which are several of known sizes."""
    return len(shape) > 2 and attributes(node).get("axis", -1) % len(shape) == 1 and 0 not in shape[1:]


def _first_stage(shape: list[int]) -> list[int]:
    """The axes of the first stage; none where one launch does, or blocks would share the rows of either stage."""
    last, size = len(shape) - 1, math.prod(shape[1:])
    if size < _BLOCK:
        return []
    sizes = {axes: math.prod(shape[axis] for axis in axes) for axes in ((1,), (last,), *([(1, last)] * (last > 2)))}
    rows = {axes: size // within for axes, within in sizes.items() if max(within, size // within) < _BLOCK}
    return list(next((axes for axes in rows if rows[axes] > _FEW), next(iter(rows), ())))


def _staged(node: onnx.NodeProto, shape: list[int], within: list[int]) -> list[onnx.NodeProto]:
    made = Operations(node)
    axes, rows, single = made.constant(within, np.int64), made.constant([0, -1], np.int64), made.constant([1], np.int64)
    whole = made.constant([0, *shape[1:]], np.int64)
    epsilon = made.constant(attributes(node).get("epsilon", 1e-5), np.float32)

    wide = made.add("Cast", node.input[0], to=onnx.TensorProto.FLOAT)
    mean, _, square = made.centred_mean(wide, axes)
    means, variances = (made.add("Reshape", one, rows) for one in (mean, made.add("ReduceMean", square, axes)))
    mean, _, square = made.centred_mean(means, single)
    variance = made.add("ReduceMean", made.add("Add", variances, square), single)
    row = made.add("Cast", made.add("Reshape", node.input[0], rows), to=onnx.TensorProto.FLOAT)
    deviation = made.add("Sqrt", made.add("Add", variance, epsilon))
    normed = made.add("Div", made.add("Sub", row, mean), deviation)
    made.scaled(made.add("Reshape", normed, whole))
    return made.nodes
