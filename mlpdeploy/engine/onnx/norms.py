"""ONNX forms of norms. Group and instance norms are one LayerNormalization whose scale and shift broadcast.

PyTorch's exporter flattens the groups of a group norm, which an engine cannot do in the layouts of its convolutions,
and gives an instance norm vectors that TensorRT has to reshape. LayerNormalization takes (1, c, 1, 1) as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from onnxscript import opset20

op: Any = opset20  # whose annotations know no values of an unknown dtype


def _group_norm(
    x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn_enabled: bool = True
) -> Any:
    """Over everything but the batch where there is one group; several get an axis of their own."""
    channels, *grid = (int(size) for size in x.shape[1:])
    inner = [channels] if num_groups == 1 else [num_groups, channels // num_groups]
    ones = [1 for _ in grid]
    if num_groups == 1:
        return _normalised(x, weight, bias, [channels, *ones], 1, eps)
    split = op.Reshape(x, op.Constant(value_ints=[0, *inner, *grid]))
    result = _normalised(split, weight, bias, [*inner, *ones], 2, eps)
    return op.Reshape(result, op.Constant(value_ints=[0, channels, *grid]))


def _instance_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    running_mean: Any = None,
    running_var: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    """Over the grid of each channel; with running statistics it is a batch norm."""
    if not use_input_stats:
        return _batch_norm(x, weight, bias, running_mean, running_var, eps=eps)
    return _normalised(x, weight, bias, [int(x.shape[1]), *(1 for _ in x.shape[2:])], 2, eps)


def _batch_norm(
    x: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    """By its running statistics: one that takes those of the batch is another operation in a traced graph."""
    assert not training
    ones, zeros = (op.CastLike(op.Constant(value_floats=[fill] * int(x.shape[1])), x) for fill in (1.0, 0.0))
    scale, shift = (ones if weight is None else weight), (zeros if bias is None else bias)
    return op.BatchNormalization(x, scale, shift, running_mean, running_var, epsilon=eps)


def _normalised(x: Any, scale: Any, shift: Any, shape: list[int], axis: int, eps: float) -> Any:
    """Normalised over all axes from `axis` on, times `scale` and plus `shift` (vectors or None) in `shape`."""
    factors = []
    for given, fill in ((scale, 1.0), (shift, 0.0)):
        vector = op.CastLike(op.Constant(value_floats=[fill]), x) if given is None else given
        target = [1, *(1 for _ in shape)] if given is None else [1, *shape]
        factors.append(op.Reshape(vector, op.Constant(value_ints=target)))
    result, _, _ = op.LayerNormalization(x, *factors, axis=axis, epsilon=eps)
    return result


TRANSLATIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.batch_norm.default: _batch_norm,
    torch.ops.aten.group_norm.default: _group_norm,
    torch.ops.aten.instance_norm.default: _instance_norm,
}
"""Operations and how the exporter writes them."""
