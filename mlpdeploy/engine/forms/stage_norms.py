"""Norms over the channels and the places of a map take their mean and variance in two stages, for TensorRT.

before: LayerNormalization over axes 1, 2 and 3 of x (b, c, h, w), whose scale and shift are (1, c, 1, 1)
after:  mean m_i and variance v_i of the c channels of each place i; then m = mean(m_i), v = mean(v_i + (m_i - m)^2);
        then (x - m) / sqrt(v + epsilon) * scale + shift; all but the last two steps in FP32

A launch reduces the rows of a stage each by itself. Over whole maps TensorRT-RTX 1.7 shares a sum among blocks that
wait for each other: five launches in the place of three, and the map is read and written five times, not three.
Rows of the second stage are 8 or a multiple of it where there is a choice, or it takes two launches: where places are
not, channels are the rows and the first stage is over the places.
Source of the sum of variances: Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance".
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from mlpdeploy.engine.forms._edit import Operations, attributes, replaced, shapes_of

_ALIGNED = 8


def rewrite(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The same model with such norms in stages; and how many there are."""
    shapes = shapes_of(model)
    made: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type == "LayerNormalization" and (shape := shapes.get(node.input[0])) and len(shape) > 2:
            if attributes(node).get("axis", -1) % len(shape) == 1 and 0 not in shape[1:]:
                made[node.name] = _staged(node, shape)
    return replaced(model, made), len(made)


def _staged(node: onnx.NodeProto, shape: list[int]) -> list[onnx.NodeProto]:
    made, rank = Operations(node), len(shape)
    within, rows = _stages(shape)
    axes, last = made.constant(within, np.int64), made.constant([1], np.int64)
    flat = made.constant([0, rows], np.int64)
    ones = made.constant([0, *(1 for _ in range(rank - 1))], np.int64)
    epsilon = made.constant(attributes(node).get("epsilon", 1e-5), np.float32)

    wide = made.add("Cast", node.input[0], to=onnx.TensorProto.FLOAT)
    mean, _, square = made.centred_mean(wide, axes)
    means, variances = (made.add("Reshape", one, flat) for one in (mean, made.add("ReduceMean", square, axes)))
    mean, _, square = made.centred_mean(means, last)
    variance = made.add("ReduceMean", made.add("Add", variances, square), last)
    centred = made.add("Sub", wide, made.add("Reshape", mean, ones))
    deviation = made.add("Sqrt", made.add("Add", made.add("Reshape", variance, ones), epsilon))
    made.scaled(made.add("Div", centred, deviation))
    return made.nodes


def _stages(shape: list[int]) -> tuple[list[int], int]:
    """The axes of the first stage, and the rows of the second."""
    channels, places = shape[1], math.prod(shape[2:])
    if places % _ALIGNED and channels % _ALIGNED == 0:
        return list(range(2, len(shape))), channels
    return [1], places
