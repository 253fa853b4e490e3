"""Codes in a file: weights `DequantizeLinear(codes, scales, axis)` of constants in another form, and FP8's Relu.

Transposing or reshaping the codes, and the axis of the scales with them, gives the same values as doing so to the
result, and leaves the result itself as the operand that an engine looks for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import ml_dtypes
import numpy as np
import onnx_ir as ir

from mlpdeploy.engine.onnx import fp4


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
    assert codes is not None and scales is not None
    if (made := model.graph.initializers.get(f"{codes.name}_{suffix}")) is not None:
        return next(iter(made.uses())).node.outputs[0]
    changed = _changed(model, codes, change, suffix)
    if _is_blocked(source):
        scales = _changed(model, scales, change, suffix)
    node = ir.node("DequantizeLinear", [changed, scales, *zero], name=f"{source.name}_{suffix}")
    node.attributes.update({**source.attributes, "axis": ir.AttrInt64("axis", axis)})
    result = node.outputs[0]
    result.name, result.shape = f"{source.outputs[0].name}_{suffix}", changed.shape
    result.type = source.outputs[0].type
    node.meta.update(source.meta)
    model.graph.insert_before(source, node)
    return result


def _changed(model: ir.Model, value: ir.Value, change: Callable[[np.ndarray], np.ndarray], suffix: str) -> ir.Value:
    """Another form of a constant."""
    assert value.const_value is not None
    array = np.ascontiguousarray(change(value.const_value.numpy()))
    tensor = ir.Tensor(array, dtype=value.dtype, name=f"{value.name}_{suffix}")
    made = ir.Value(name=tensor.name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(made)
    return made


BLOCKED = 21
"""The opset that has INT4 and blocks."""


def pack_blocks(model: ir.Model) -> int:
    """Hold the codes of blocks in INT4 or E2M1, two in a byte, in place; gives the opset that the file then is of.

    before: DequantizeLinear(codes, a scale for each block)
    after:  DequantizeLinear(codes in INT4 or E2M1, the same, block_size)
    """
    for node in model.graph:
        if node.op_type == "DequantizeLinear" and not node.domain and _is_blocked(node):
            codes, scales = (value for value in node.inputs[:2] if value is not None)
            axis = node.attributes["axis"].as_int()
            block = codes.shape[axis] // scales.shape[axis]  # type: ignore[index, operator]
            node.attributes["block_size"] = ir.AttrInt64("block_size", block)  # type: ignore[arg-type]
            if codes.dtype == ir.DataType.INT8:
                codes.const_value = ir.tensor(codes.const_value.numpy().astype(ml_dtypes.int4), name=codes.name)  # type: ignore[union-attr]
                codes.type = ir.TensorType(ir.DataType.INT4)
                model.graph.opset_imports[""] = BLOCKED
            else:
                fp4.pack(codes)
                model.graph.opset_imports[""] = fp4.OPSET
    return model.graph.opset_imports[""]


def _is_blocked(node: ir.Node) -> bool:
    """Whether a DequantizeLinear has a scale for each block."""
    scales = node.inputs[1]
    return scales is not None and len(scales.shape or ()) > 1
