"""8-bit codes in a file: weights `DequantizeLinear(codes, scales, axis)` of constants in another form, and FP8's Relu.

Transposing or reshaping the codes, and the axis of the scales with them, gives the same values as doing so to the
result, and leaves the result itself as the operand that an engine looks for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir


def decoder(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that makes `value` of constant codes, or None."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or node.domain:
        return None
    return node if all(one is not None and one.is_initializer() for one in node.inputs) else None


def transpose_codes(model: ir.Model) -> None:
    """Transpose codes instead of weights, in place.

    before: Transpose(DequantizeLinear(codes, scales, axis))
    after:  DequantizeLinear(transposed codes, scales, transposed axis)
    """
    for node in list(model.graph):
        source = decoder(node.inputs[0]) if node.op_type == "Transpose" and not node.domain else None
        if source is None:
            continue
        rank = len(source.inputs[0].shape)  # type: ignore[union-attr, arg-type]
        order = node.attributes["perm"].as_ints() if "perm" in node.attributes else range(rank)[::-1]
        axis = list(order).index(source.attributes["axis"].as_int() % rank)
        value = recoded(model, source, partial(np.transpose, axes=tuple(order)), axis, "transposed")
        node.outputs[0].replace_all_uses_with(value)
        model.graph.remove(node, safe=True)


def keep_relu(model: ir.Model) -> None:
    """Write a Relu that FP8 codes are made of as a Max, in place.

    before: QuantizeLinear(Relu(x), scale, FP8 zero)
    after:  QuantizeLinear(Max(x, 0), scale, FP8 zero)

    ONNX Runtime 1.32 leaves out such a Relu, as if no code were below zero.
    """
    for node in list(model.graph):
        relu = node.inputs[0].producer() if node.op_type == "QuantizeLinear" else None  # type: ignore[union-attr]
        if relu is None or relu.op_type != "Relu" or node.inputs[2].dtype != ir.DataType.FLOAT8E4M3FN:  # type: ignore[union-attr]
            continue
        value = relu.outputs[0]
        zero = ir.node("Constant", [], {"value": ir.tensor(0.0, dtype=value.dtype)})
        largest = ir.node("Max", [relu.inputs[0], zero.outputs[0]], name=relu.name)
        largest.outputs[0].shape, largest.outputs[0].type, name = value.shape, value.type, value.name
        largest.meta.update(relu.meta)
        model.graph.insert_before(relu, [zero, largest])
        value.replace_all_uses_with(largest.outputs[0])
        model.graph.remove(relu, safe=True)
        largest.outputs[0].name = name


def recoded(
    model: ir.Model, source: ir.Node, change: Callable[[np.ndarray], np.ndarray], axis: int, suffix: str
) -> ir.Value:
    """The result of a new DequantizeLinear in front of `source`, whose codes are changed; one for each suffix."""
    codes, scales, *zero = source.inputs
    assert codes is not None and scales is not None and codes.const_value is not None
    name = f"{source.outputs[0].name}_{suffix}"
    for use in scales.uses():
        if use.node.outputs[0].name == name:
            return use.node.outputs[0]
    array = np.ascontiguousarray(change(codes.const_value.numpy()))
    tensor = ir.Tensor(array, dtype=codes.dtype, name=f"{codes.name}_{suffix}")
    shape = ir.Shape(array.shape)
    changed = ir.Value(name=tensor.name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(changed)
    node = ir.node("DequantizeLinear", [changed, scales, *zero], {"axis": axis}, name=f"{source.name}_{suffix}")
    result = node.outputs[0]
    result.name, result.shape, result.type = name, shape, source.outputs[0].type
    node.meta.update(source.meta)
    model.graph.insert_before(source, node)
    return result
