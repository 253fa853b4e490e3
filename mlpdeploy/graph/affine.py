"""Constant scales and shifts of a graph, read as y = x * scale + shift whatever operation spells them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from mlpdeploy.graph.editor import weight
from mlpdeploy.graph.kinds import shape_of

aten = torch.ops.aten

BATCH_NORMS = {aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default}


@dataclass(frozen=True)
class Affine:
    """`node` = `source` * `scale` + `shift`: float64, of the rank of `node`, 1 where constant, None if absent."""

    node: fx.Node
    source: fx.Node
    scale: torch.Tensor | None = None
    shift: torch.Tensor | None = None

    def varies(self, *dims: int) -> bool:
        """Whether scale and shift vary along no other dimensions than `dims` (counted from the end)."""
        rank = len(shape_of(self.node))
        allowed = {dim % rank for dim in dims}
        present = [tensor for tensor in (self.scale, self.shift) if tensor is not None]
        return all(size == 1 or dim in allowed for tensor in present for dim, size in enumerate(tensor.shape))


def affine(module: nn.Module, node: fx.Node) -> Affine | None:
    """`node` read as a constant scale and shift of one activation, or None where it is something else."""
    if node.op != "call_function":
        return None
    reader = _READERS.get(node.target)  # type: ignore[call-overload]
    found = reader(module, node) if reader is not None else None
    if found is None or shape_of(found[0]) != shape_of(node):
        return None
    source, scale, shift = found
    return Affine(node, source, _ranked(scale, node), _ranked(shift, node))


Read = tuple[fx.Node, torch.Tensor | None, torch.Tensor | None]


def _ranked(tensor: torch.Tensor | None, node: fx.Node) -> torch.Tensor | None:
    rank = len(shape_of(node))
    return None if tensor is None else tensor.double().reshape((1,) * (rank - tensor.dim()) + tuple(tensor.shape))


def _constant(module: nn.Module, value: Any) -> torch.Tensor | None:
    if isinstance(value, int | float):
        return torch.tensor(float(value), dtype=torch.float64)
    tensor = weight(module, value)
    return tensor.detach() if tensor is not None and tensor.is_floating_point() else None


def _one_constant(module: nn.Module, node: fx.Node) -> tuple[fx.Node, torch.Tensor, bool] | None:
    """(activation, constant, whether the constant comes first) of a binary operation."""
    first, second = (_constant(module, arg) for arg in node.args[:2])
    if (first is None) == (second is None) or node.kwargs:
        return None
    source = node.args[1] if first is not None else node.args[0]
    constant = first if first is not None else second
    return (source, constant, first is not None) if isinstance(source, fx.Node) and constant is not None else None


def _mul(module: nn.Module, node: fx.Node) -> Read | None:
    found = _one_constant(module, node)
    return (found[0], found[1], None) if found else None


def _div(module: nn.Module, node: fx.Node) -> Read | None:
    found = _one_constant(module, node)
    return (found[0], 1 / found[1].double(), None) if found and not found[2] else None


def _add(module: nn.Module, node: fx.Node) -> Read | None:
    found = _one_constant(module, node)
    return (found[0], None, found[1]) if found else None


def _sub(module: nn.Module, node: fx.Node) -> Read | None:
    found = _one_constant(module, node)
    if not found:
        return None
    return (found[0], -torch.ones(()), found[1]) if found[2] else (found[0], None, -found[1])


def _rsub(module: nn.Module, node: fx.Node) -> Read | None:
    source, constant = node.args[:2]
    plain = isinstance(source, fx.Node) and isinstance(constant, int | float) and len(node.args) == 2
    return (source, -torch.ones(()), _constant(module, constant)) if plain and not node.kwargs else None  # type: ignore[return-value]


def _neg(module: nn.Module, node: fx.Node) -> Read | None:
    return node.args[0], -torch.ones(()), None  # type: ignore[return-value]


def _addcmul(module: nn.Module, node: fx.Node) -> Read | None:
    shift, first, second = (_constant(module, arg) for arg in node.args[:3])
    if shift is None or (first is None) == (second is None):
        return None
    source, scale = (node.args[2], first) if first is not None else (node.args[1], second)
    factor = float(node.kwargs.get("value", 1))  # type: ignore[arg-type]
    return (source, scale.double() * factor, shift) if isinstance(source, fx.Node) and scale is not None else None


def _batch_norm(module: nn.Module, node: fx.Node) -> Read | None:
    source, gamma, beta, mean, variance = node.args[:5]
    eps = node.args[7] if node.target is aten.batch_norm.default else node.args[6]
    training = node.target is aten.batch_norm.default and node.args[5]
    mean, variance = _constant(module, mean), _constant(module, variance)
    if training or mean is None or variance is None or not isinstance(source, fx.Node):
        return None
    scale = (variance.double() + float(eps)).rsqrt()  # type: ignore[arg-type]
    scale = scale if (g := _constant(module, gamma)) is None else scale * g.double()
    shift = -mean.double() * scale if (b := _constant(module, beta)) is None else b.double() - mean.double() * scale
    shape = (1, -1) + (1,) * (len(shape_of(node)) - 2)
    return source, scale.reshape(shape), shift.reshape(shape)


_READERS = {
    aten.mul.Tensor: _mul,
    aten.div.Tensor: _div,
    aten.add.Tensor: _add,
    aten.sub.Tensor: _sub,
    aten.rsub.Scalar: _rsub,
    aten.neg.default: _neg,
    aten.addcmul.default: _addcmul,
} | dict.fromkeys(BATCH_NORMS, _batch_norm)
