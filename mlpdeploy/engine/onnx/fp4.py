"""NVFP4 in a file: TensorRT's own operation with its meaning beside it, and weights of two codes in a byte.

TensorRT knows DynamicQuantize by its name and never looks at the function; every other engine computes the function.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import onnx
import onnx_ir as ir
import onnxscript
from onnx import TensorProto, parser
from onnxscript import opset20

from mlpdeploy.graph.custom_ops import FP4_BLOCK

DOMAIN, NAME = "trt", "TRT_FP4DynamicQuantize"
OPSET = 23
"""The first that has numbers of E2M1."""

_FUNCTION = f"""
<domain: "{DOMAIN}", opset_import: ["": {OPSET}]>
{NAME} <axis, block_size, scale_type> (x, scale) => (codes, scales)
{{
  wide = Cast <to = 1> (x)
  in_blocks = Constant <value_ints = [0, -1, {FP4_BLOCK}]> ()
  in_rows = Constant <value_ints = [0, -1]> ()
  last = Constant <value_ints = [-1]> ()
  half = Constant <value_float = 0.5> ()
  one = Constant <value_float = 1.0> ()
  two = Constant <value_float = 2.0> ()
  four = Constant <value_float = 4.0> ()
  six = Constant <value_float = 6.0> ()
  least = Constant <value_float = -6.0> ()
  none = Constant <value_float = 0.0> ()
  blocks = Reshape (wide, in_blocks)
  magnitudes = Abs (blocks)
  largest = ReduceMax <keepdims = 1> (magnitudes, last)
  exact = Div (largest, six)
  times = Div (one, scale)
  scaled = Mul (exact, times)
  block_scales = Cast <to = {TensorProto.FLOAT8E4M3FN}> (scaled)
  scales = Reshape (block_scales, in_rows)
  told = Cast <to = 1> (block_scales)
  steps = Mul (told, scale)
  positive = Greater (steps, none)
  divisors = Where (positive, steps, one)
  inverse = Div (one, divisors)
  factors = Where (positive, inverse, none)
  values = Mul (blocks, factors)
  sizes = Abs (values)
  below_two = Less (sizes, two)
  below_four = Less (sizes, four)
  coarse = Where (below_four, one, two)
  spaced = Where (below_two, half, coarse)
  counts = Div (values, spaced)
  whole = Round (counts)
  nearest = Mul (whole, spaced)
  kept = Clip (nearest, least, six)
  rows = Reshape (kept, in_rows)
  codes = Cast <to = {TensorProto.FLOAT4E2M1}> (rows)
}}
"""


def function() -> onnx.FunctionProto:
    """What TensorRT's operation computes of rows (r, K) and a scale in FP32: codes (r, K), scales (r, K / 16)."""
    made: onnx.FunctionProto = parser.parse_function(_FUNCTION)
    return made


def coded(x: Any, scale: Any) -> Any:
    """Rows as their codes tell them, in the exporter's words."""
    codes, scales = _DYNAMIC_QUANTIZE(
        x, scale, axis=-1, block_size=FP4_BLOCK, scale_type=ir.DataType.FLOAT8E4M3FN.value
    )
    rows, inputs = x.shape
    codes.dtype = scales.dtype = ir.DataType.FLOAT8E4M3FN  # `pack` makes E2M1 of the codes
    codes.shape, scales.shape = ir.Shape([rows, inputs]), ir.Shape([rows, int(inputs) // FP4_BLOCK])
    steps: Any = opset20.DequantizeLinear(scales, scale)
    steps.dtype, steps.shape = ir.DataType.FLOAT, scales.shape
    told: Any = opset20.DequantizeLinear(codes, steps, axis=1)
    return told if x.dtype == ir.DataType.FLOAT else opset20.Cast(told, to=x.dtype)


def pack(codes: ir.Value) -> None:
    """Call codes that an operation makes E2M1, and hold those of the file in it, two in a byte."""
    if codes.const_value is not None:
        codes.const_value = ir.tensor(codes.const_value.numpy().astype(ml_dtypes.float4_e2m1fn), name=codes.name)
    codes.type = ir.TensorType(ir.DataType.FLOAT4E2M1)


def _schema() -> onnx.defs.OpSchema:
    parameter, attribute = onnx.defs.OpSchema.FormalParameter, onnx.defs.OpSchema.Attribute
    return onnx.defs.OpSchema(
        NAME,
        DOMAIN,
        1,
        inputs=[parameter("x", "T"), parameter("scale", "tensor(float)")],
        outputs=[parameter("codes", "tensor(float8e4m3fn)"), parameter("scales", "tensor(float8e4m3fn)")],
        type_constraints=[("T", [f"tensor({name})" for name in ("float", "float16")], "")],
        attributes=[
            attribute(name, onnx.defs.OpSchema.AttrType.INT, "") for name in ("axis", "block_size", "scale_type")
        ],
    )


_DYNAMIC_QUANTIZE = onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, 1), NAME, _schema())
