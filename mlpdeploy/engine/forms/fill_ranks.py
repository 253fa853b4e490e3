"""Constants of full rank, which TensorRT's parser would otherwise reshape with a layer for each use.

Other engines get them as PyTorch has them: a bias of one dimension is what ONNX Runtime's fusions
look for.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from mlpdeploy.engine.onnx.coded import decoder, recoded

BROADCASTS = {"Add", "Sub", "Mul", "Div", "MatMul", "Gemm", "LayerNormalization"}
"""Operations whose constant operands TensorRT needs in the rank of the result."""

FUNCTIONS = "mlpdeploy"
"""Domain of our local functions: their weight multiplies a tensor of one dimension less than what they project."""


def rewrite(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The same model with dimensions of 1 in front of its constants, and the indices of Gather as int32."""
    module = ir.serde.deserialize_model(model)
    made: dict[tuple[str, int], ir.Value] = {}
    count = 0
    for node in module.graph:
        if node.op_type == "Gather" and _is_int64(node.inputs[1]):
            _replace(module, node, 1, ("int32", 0), made)
            count += 1
        shape = node.outputs[0].shape
        if shape is None or not (node.op_type in BROADCASTS or node.domain == FUNCTIONS):
            continue
        ranks = _ranks(node, len(shape))
        for index, (value, rank) in enumerate(zip(node.inputs, ranks, strict=True)):
            if value is None or not 0 < len(value.shape or ()) < rank:
                continue
            if value.is_initializer():
                _replace(module, node, index, ("rank", rank), made)
            elif (source := decoder(value)) is not None and "block_size" not in source.attributes:
                node.replace_input_with(index, _full_rank_codes(module, source, rank))
            else:
                continue
            count += 1
    RemoveUnusedNodesPass()(module)
    return ir.serde.serialize_model(module), count


def _ranks(node: ir.Node, rank: int) -> list[int]:
    """The rank that each operand of a node needs, whose result has `rank` dimensions."""
    if node.domain != FUNCTIONS:
        return [rank] * len(node.inputs)
    projected = len(node.inputs[0].shape or ()) if node.inputs[0] is not None else 0
    return [0, projected - 1, *[projected] * len(node.inputs)][: len(node.inputs)]


def _full_rank_codes(module: ir.Model, source: ir.Node, rank: int) -> ir.Value:
    """A weight of 8-bit codes with dimensions of 1 in front."""
    shape = source.outputs[0].shape
    assert shape is not None
    missing = rank - len(shape)
    axis = source.attributes["axis"].as_int() % len(shape) + missing
    wide = (1,) * missing
    return recoded(module, source, lambda codes: codes.reshape(wide + codes.shape), axis, f"rank{rank}")


def _is_int64(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and value.dtype == ir.DataType.INT64


def _replace(
    module: ir.Model, node: ir.Node, index: int, form: tuple[str, int], made: dict[tuple[str, int], ir.Value]
) -> None:
    """Make one input of `node` another form of the same constant, shared by all that need that form."""
    value = node.inputs[index]
    assert value is not None and value.const_value is not None
    name = f"{value.name}_{form[0]}{form[1] or ''}"
    if (name, form[1]) not in made:
        array = value.const_value.numpy()
        dtype = ir.DataType.INT32 if form[0] == "int32" else value.dtype
        wide = (1,) * (form[1] - array.ndim) + array.shape
        array = array.astype(np.int32) if form[0] == "int32" else array.reshape(wide)
        tensor = ir.Tensor(array, dtype=dtype, name=name)
        new = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        module.graph.register_initializer(new)
        made[name, form[1]] = new
    node.replace_input_with(index, made[name, form[1]])
