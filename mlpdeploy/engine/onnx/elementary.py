"""ONNX forms of functions that are worth having for what they are near zero, or far from it, where the exporter's fail.

`log(1 + x)` forgets an x below the last place of 1, `exp(x) - 1` too, and a logarithm of a sum or a sigmoid is infinite
where its argument leaves the range of the numbers. The forms here are as accurate as the numbers of their dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from onnxscript import opset20

op: Any = opset20  # whose annotations know no values of an unknown dtype


def number(value: float, like: Any) -> Any:
    """A constant in the dtype of `like`."""
    return op.CastLike(op.Constant(value_float=value), like)


def _log1p(x: Any) -> Any:
    """log(u) x / (u - 1) for u = 1 + x as it is rounded, and x where that is 1 (Kahan).

    For an infinite x it is x.
    """
    one = number(1.0, x)
    u = op.Add(one, x)
    rounded = op.Sub(u, one)
    plain = op.Or(op.Equal(rounded, number(0.0, x)), op.IsInf(op.Cast(x, to=1)))
    divisor = op.Where(plain, one, rounded)
    return op.Where(plain, x, op.Mul(op.Log(u), op.Div(x, divisor)))


def _expm1(x: Any) -> Any:
    """tanh(x / 2) (exp(x) + 1)."""
    return op.Mul(op.Tanh(op.Mul(x, number(0.5, x))), op.Add(op.Exp(x), number(1.0, x)))


def _log_sigmoid(x: Any) -> Any:
    """-log(1 + exp(-x))."""
    return op.Neg(_logaddexp(op.Neg(x), number(0.0, x)))


def _logaddexp(x: Any, y: Any) -> Any:
    """max + log(1 + exp(-|x - y|))."""
    return op.Add(op.Max(x, y), _log1p(op.Exp(op.Neg(op.Abs(op.Sub(x, y))))))


TRANSLATIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.log1p.default: _log1p,
    torch.ops.aten.expm1.default: _expm1,
    torch.ops.aten.log_sigmoid.default: _log_sigmoid,
    torch.ops.aten.logaddexp.default: _logaddexp,
}
