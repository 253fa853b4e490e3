"""The ONNX form of attention over tensors of any rank; the exporter knows only (batch, heads, tokens, channels)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
import torch
from onnxscript import opset20
from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention

from mlpdeploy.engine.onnx.elementary import number

op: Any = opset20  # whose annotations know no values of an unknown dtype


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(q k^T scale + mask) v over the last two axes, (..., tokens, channels)."""
    rank = len(query.shape)
    if {rank, len(key.shape), len(value.shape)} == {4}:
        return aten_scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if enable_gqa:
        raise NotImplementedError("groups of heads in attention over other than four axes")
    tokens, others = int(query.shape[-2]), int(key.shape[-2])
    factor = float(query.shape[-1]) ** -0.5 if scale is None else scale
    swapped = [*range(len(key.shape) - 2), len(key.shape) - 1, len(key.shape) - 2]
    scores = op.MatMul(op.Mul(query, number(factor, query)), op.Transpose(key, perm=swapped))
    if is_causal:
        seen = torch.ones(tokens, others, dtype=torch.bool).tril()
        attn_mask = op.Constant(value=onnx.numpy_helper.from_array(seen.numpy(), "causal"))
        scores = op.Where(attn_mask, scores, number(float("-inf"), scores))
    elif attn_mask is not None:
        masked = attn_mask.dtype is not None and attn_mask.dtype.name == "BOOL"
        scores = op.Where(attn_mask, scores, number(float("-inf"), scores)) if masked else op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


TRANSLATIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: _attention,
}
"""Operations and how the exporter writes them."""
