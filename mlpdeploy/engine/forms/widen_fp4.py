"""Codes of FP4 become codes of FP8 of the same numbers, for engines without FP4.

before: DequantizeLinear(codes in E2M1, scales, block_size)
after:  DequantizeLinear(codes in E4M3, the same, block_size)
The identity: every number of E2M1 is one of E4M3. The function that makes codes rounds to E2M1 before its last cast.
"""

from __future__ import annotations

from collections.abc import Iterable

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NARROW, WIDE = TensorProto.FLOAT4E2M1, TensorProto.FLOAT8E4M3FN


def rewrite(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The same model without E2M1, and how many weights and casts were of it."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    count = 0
    for tensor in result.graph.initializer:
        if tensor.data_type == NARROW:
            values = numpy_helper.to_array(tensor).astype(ml_dtypes.float8_e4m3fn)
            codes = values.view(np.uint8).tobytes()
            tensor.CopyFrom(helper.make_tensor(tensor.name, WIDE, tensor.dims, codes, raw=True))
            count += 1
    for nodes in (result.graph.node, *(function.node for function in result.functions)):
        count += sum(map(_widened, _casts(nodes)))
    for told in result.graph.value_info:
        if told.type.tensor_type.elem_type == NARROW:
            told.type.tensor_type.elem_type = WIDE
    return (result, count) if count else (model, 0)


def _casts(nodes: Iterable[onnx.NodeProto]) -> Iterable[onnx.AttributeProto]:
    return (one for node in nodes if node.op_type == "Cast" for one in node.attribute if one.name == "to")


def _widened(to: onnx.AttributeProto) -> bool:
    if to.i != NARROW:
        return False
    to.i = WIDE
    return True
