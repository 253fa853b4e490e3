"""ONNX forms of operations that the exporter has none for, and that ONNX can say."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from onnxscript import opset20

from mlpdeploy.engine.onnx.elementary import number

op: Any = opset20  # whose annotations know no values of an unknown dtype


def _hypot(x: Any, y: Any) -> Any:
    """The larger one times sqrt(1 + ratio^2), so that no square leaves the range of the numbers."""
    x, y = op.Abs(x), op.Abs(y)
    larger, smaller = op.Max(x, y), op.Min(x, y)
    nothing = op.Equal(larger, number(0.0, larger))
    ratio = op.Div(smaller, op.Where(nothing, number(1.0, larger), larger))
    return op.Mul(larger, op.Sqrt(op.Add(op.Mul(ratio, ratio), number(1.0, ratio))))


def _ignoring_nan(choose: str) -> Callable[[Any, Any], Any]:
    def chosen(x: Any, y: Any) -> Any:
        either = getattr(op, choose)(x, y)
        return op.Where(op.IsNaN(x), y, op.Where(op.IsNaN(y), x, either))

    return chosen


def _kthvalue(x: Any, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    """The last of the k smallest."""
    smallest, places = op.TopK(x, op.Constant(value_ints=[k]), axis=dim, largest=0, sorted=1)
    last, axis = op.Constant(value_ints=[k - 1]), op.Constant(value_ints=[dim])
    found = op.Gather(smallest, last, axis=dim), op.Gather(places, last, axis=dim)
    return found if keepdim else tuple(op.Squeeze(one, axis) for one in found)


def _median(x: Any, dim: int, keepdim: bool = False) -> Any:
    """The lower one of the two in the middle, where there are two."""
    return _kthvalue(x, (int(x.shape[dim]) + 1) // 2, dim, keepdim)


def _cdist(x: Any, y: Any, p: float = 2.0, compute_mode: Any = None) -> Any:
    """The norm of every difference, (..., n, c) and (..., m, c) to (..., n, m)."""
    last = op.Constant(value_ints=[-1])
    rows, columns = op.Unsqueeze(x, op.Constant(value_ints=[-2])), op.Unsqueeze(y, op.Constant(value_ints=[-3]))
    apart = op.Abs(op.Sub(rows, columns))
    if p == math.inf:
        return op.ReduceMax(apart, last, keepdims=0)
    if p == 1:
        return op.ReduceSum(apart, last, keepdims=0)
    if p == 2:
        return op.Sqrt(op.ReduceSum(op.Mul(apart, apart), last, keepdims=0))
    if p == 0:
        unequal = op.CastLike(op.Not(op.Equal(apart, number(0.0, apart))), apart)
        return op.ReduceSum(unequal, last, keepdims=0)
    powers = op.ReduceSum(op.Pow(apart, number(p, apart)), last, keepdims=0)
    return op.Pow(powers, number(1 / p, powers))


TRANSLATIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.hypot.default: _hypot,
    torch.ops.aten.fmax.default: _ignoring_nan("Max"),
    torch.ops.aten.fmin.default: _ignoring_nan("Min"),
    torch.ops.aten.kthvalue.default: _kthvalue,
    torch.ops.aten.median.dim: _median,
    torch.ops.aten.cdist.default: _cdist,
}
"""Operations and how the exporter writes them."""
