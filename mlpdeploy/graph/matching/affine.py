"""Constant scales and shifts of a graph, read as y = x * scale + shift whatever operation spells them.

ScaleShift at another place of the graph, too: behind rearrangements and means, or in front of rearrangements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from mlpdeploy.graph.editor import weight
from mlpdeploy.graph.kinds import dims_of, is_tensor, keeps_dims, rearranged, shape_of
from mlpdeploy.graph.layout.view import View, flat, size_at

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
        for tensor in (tensor for tensor in (self.scale, self.shift) if tensor is not None):
            allowed = {dim % tensor.dim() for dim in dims}
            if any(size != 1 and dim not in allowed for dim, size in enumerate(tensor.shape)):
                return False
        return True


def affine(module: nn.Module, node: fx.Node) -> Affine | None:
    """`node` read as a constant scale and shift of one activation, or None where it is something else."""
    if node.op != "call_function":
        return None
    reader = _READERS.get(node.target)  # type: ignore[call-overload]
    found = reader(module, node) if reader is not None else None
    if found is None or shape_of(found[0]) != shape_of(node):
        return None
    if found[0].meta["val"].dtype != node.meta["val"].dtype:  # whole numbers, which the operation makes real ones
        return None
    source, scale, shift = found
    return Affine(node, source, _ranked(scale, node), _ranked(shift, node))


def rearranges(node: fx.Node) -> bool:
    """Whether `node` only reshapes and permutes one activation."""
    source = node.args[0] if node.op == "call_function" and node.args else None
    known = isinstance(source, fx.Node) and source.op != "get_attr" and is_tensor(source)
    return known and rearranged(node, View.of(shape_of(source))) is not None  # type: ignore[arg-type]


def averages(node: fx.Node) -> bool:
    """Whether `node` is a mean over some dimensions."""
    return node.target is aten.mean.dim and dims_of(node) is not None


def seen_behind(link: Affine, path: Sequence[fx.Node]) -> Affine | None:
    """The same scale and shift after the operations of `path` (rearrangements and means), which read `link.node`.

    None where a mean takes the axis along which they vary.
    """
    scale, shift = (_along(tensor, path, backwards=False) for tensor in (link.scale, link.shift))
    lost = (scale is None) != (link.scale is None) or (shift is None) != (link.shift is None)
    return None if lost else replace(link, scale=scale, shift=shift)


def seen_in_front(link: Affine, path: Sequence[fx.Node]) -> Affine:
    """The same scale and shift in front of the rearrangements of `path`, whose result `link.node` reads."""
    scale, shift = (_along(tensor, path, backwards=True) for tensor in (link.scale, link.shift))
    return replace(link, scale=scale, shift=shift)


def _along(tensor: torch.Tensor | None, path: Sequence[fx.Node], *, backwards: bool) -> torch.Tensor | None:
    for node in reversed(path) if backwards else path:
        if tensor is None:
            return None
        source: fx.Node = node.args[0]  # type: ignore[assignment]
        if averages(node):
            dims = dims_of(node) or ()
            if any(tensor.shape[dim] != 1 for dim in dims):
                return None
            tensor = tensor if keeps_dims(node) else tensor.squeeze(dims)
        else:
            tensor = _moved(tensor, node, source, backwards)
    return tensor


def _moved(tensor: torch.Tensor, node: fx.Node, source: fx.Node, backwards: bool) -> torch.Tensor:
    """A constant of `source` (`backwards`: of `node`) as one of the other, 1 where it does not vary; for one sample."""
    view = rearranged(node, View.of(shape_of(source)))
    assert view is not None
    near, far = (view.seen, view.stored) if backwards else (view.stored, view.seen)
    sizes = [[size_at(axis.size, 1) for axis in group] for group in near]
    whole = tensor.expand([math.prod(group) for group in sizes]).reshape([size for group in sizes for size in group])
    order = flat(near)
    moved = whole.permute([order.index(axis) for axis in flat(far)])
    result = moved.reshape([math.prod(size_at(a.size, 1) for a in group) for group in far])
    for dim in range(result.dim()):
        first = result.narrow(dim, 0, 1)
        result = first if bool((result == first).all()) else result
    return result


ScaleShift = tuple[fx.Node, torch.Tensor | None, torch.Tensor | None]


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


def _mul(module: nn.Module, node: fx.Node) -> ScaleShift | None:
    found = _one_constant(module, node)
    return (found[0], found[1], None) if found else None


def _div(module: nn.Module, node: fx.Node) -> ScaleShift | None:
    found = _one_constant(module, node)
    return (found[0], 1 / found[1].double(), None) if found and not found[2] else None


def _add(module: nn.Module, node: fx.Node) -> ScaleShift | None:
    found = _one_constant(module, node)
    return (found[0], None, found[1]) if found else None


def _sub(module: nn.Module, node: fx.Node) -> ScaleShift | None:
    found = _one_constant(module, node)
    if not found:
        return None
    return (found[0], -torch.ones(()), found[1]) if found[2] else (found[0], None, -found[1])


def _rsub(module: nn.Module, node: fx.Node) -> ScaleShift | None:
    source, constant = node.args[:2]
    plain = isinstance(source, fx.Node) and isinstance(constant, int | float) and len(node.args) == 2
    return (source, -torch.ones(()), _constant(module, constant)) if plain and not node.kwargs else None  # type: ignore[return-value]


def _neg(module: nn.Module, node: fx.Node) -> ScaleShift | None:
    return node.args[0], -torch.ones(()), None  # type: ignore[return-value]


def _addcmul(module: nn.Module, node: fx.Node) -> ScaleShift | None:
    shift, first, second = (_constant(module, arg) for arg in node.args[:3])
    if shift is None or (first is None) == (second is None):
        return None
    source, scale = (node.args[2], first) if first is not None else (node.args[1], second)
    factor = float(node.kwargs.get("value", 1))  # type: ignore[arg-type]
    return (source, scale.double() * factor, shift) if isinstance(source, fx.Node) and scale is not None else None


def _batch_norm(module: nn.Module, node: fx.Node) -> ScaleShift | None:
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
