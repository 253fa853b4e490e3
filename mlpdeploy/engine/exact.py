"""ONNX forms of functions that exist because their spelling is wrong: log(1 + x), exp(x) - 1, log(sigmoid(x)).

PyTorch's exporter spells them. Of 1e-9 the first two are then 0, and the logarithm of sigmoid(-200) is minus infinity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from onnxscript import opset20

op: Any = opset20  # whose annotations know no values of an unknown dtype


def _log1p(x: Any) -> Any:
    """log(u) x / (u - 1) with u = 1 + x as it is rounded (W. Kahan): the quotient takes the rounding out again."""
    one = op.CastLike(op.Constant(value_float=1.0), x)
    sum_ = op.Add(x, one)
    rounded = op.Sub(sum_, one)
    logarithm = op.Log(sum_)
    corrected = op.Mul(logarithm, op.Div(x, rounded))
    # Of a large x, and of infinity, nothing was rounded off; of a small one everything but x.
    large = op.Where(op.Equal(sum_, x), logarithm, corrected)
    return op.Where(op.Equal(sum_, one), x, large)


def _expm1(x: Any) -> Any:
    """tanh(x / 2) (exp(x) + 1)."""
    half, one = (op.CastLike(op.Constant(value_float=number), x) for number in (0.5, 1.0))
    return op.Mul(op.Tanh(op.Mul(x, half)), op.Add(op.Exp(x), one))


def _log_sigmoid(x: Any) -> Any:
    """-softplus(-x)."""
    return op.Neg(op.Softplus(op.Neg(x)))


TRANSLATIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.log1p.default: _log1p,
    torch.ops.aten.expm1.default: _expm1,
    torch.ops.aten.log_sigmoid.default: _log_sigmoid,
}
"""Operations and how the exporter writes them."""
