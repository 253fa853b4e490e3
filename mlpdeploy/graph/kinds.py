"""What an ATen operation does to layout, read from its schema and tags rather than from a list of names."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx

from mlpdeploy.graph.layout.view import Size, View, concrete, meaning, size_of
from mlpdeploy.graph.operation import GELUS

aten = torch.ops.aten

REDUCTIONS = {aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default}
"""`op(x, dims, keepdim)`: the other axes keep their places."""

SPLITS = {aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default}
"""`op(x, ..., dim)` to a list: every part differs from x in the size of one dimension."""

PICKS = {aten.select.int, aten.unbind.int}
"""`op(x, ..., dim)`: one dimension goes."""

ALONG = SPLITS | PICKS | {aten.softmax.int, aten.slice.Tensor}
"""Operations along one dimension that leave the order of all axes alone."""

CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv2d.padding, aten.conv3d.default}

CONVOLUTIONS_OF_IMAGES = {aten.conv2d.default, aten.conv2d.padding, aten.conv_transpose2d.input}
"""`op(x, kernel, ...)` with two dimensions of space."""

CASTS = {aten.to.dtype, aten.to.dtype_layout, aten._to_copy.default}
"""`op(x, dtype, ...)`."""

LISTS = SPLITS | {aten.unbind.int}
"""Operations that return a list of tensors."""

MOVES = LISTS | {aten.cat.default, aten.stack.default, aten.index_select.default, operator.getitem}
"""Operations that hand elements on as they are, but are no views."""

COMPARISONS = {aten.lt, aten.le, aten.gt, aten.ge, aten.eq, aten.ne, aten.isclose}
"""Operations that hold two numbers against each other (packets of overloads)."""


def shape_of(node: fx.Node) -> tuple[Size, ...]:
    """The shape of a node's tensor, symbolic in the batch."""
    return tuple(size_of(size) for size in node.meta["val"].shape)


def is_tensor(node: fx.Node) -> bool:
    """Whether a node's value is one tensor."""
    return isinstance(node.meta.get("val"), torch.Tensor)


def is_real(node: fx.Node) -> bool:
    """Whether a node's value is one tensor of floating-point numbers."""
    return is_tensor(node) and bool(node.meta["val"].is_floating_point())


def is_pointwise(node: fx.Node) -> bool:
    """Whether every element of the result comes from the elements at the same place (torch's own tag, and casts)."""
    target = node.target
    tagged = isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags
    return (tagged or target in CASTS) and is_tensor(node)


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an ATen operation by their names in its schema, with the defaults of those left out."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((argument.name for argument in schema), node.args, strict=False))
    return {argument.name: argument.default_value for argument in schema} | given | dict(node.kwargs)


def packet(node: fx.Node) -> Any:
    """The operation of a node, whatever its overload; None for what is not one of torch."""
    return getattr(node.target, "overloadpacket", None)


def root_of(node: fx.Node) -> float:
    """Of which power a node is the root, whose sum it forms itself: 2 for a standard deviation; 1 where it is none."""
    kind = packet(node)
    if kind not in {aten.linalg_vector_norm, aten.linalg_norm, aten.norm}:
        return 2.0 if kind is aten.std else 1.0
    order = node.args[1] if len(node.args) > 1 else node.kwargs.get("ord", node.kwargs.get("p"))
    order = 2.0 if order is None else order
    return float(order) if isinstance(order, int | float) and 0 < order < math.inf else 1.0


def is_view(node: fx.Node) -> bool:
    """Whether a node shows elements of its first operand in another shape or order."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not is_tensor(node) or not target._schema.arguments:
        return False
    alias = target._schema.arguments[0].alias_info
    return alias is not None and not alias.is_write


def dim_of(node: fx.Node) -> int:
    """The `dim` argument of an operation along one dimension, counted from the front."""
    rank = len(shape_of(node.all_input_nodes[0]))
    for position, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.name == "dim":
            given = node.args[position] if position < len(node.args) else node.kwargs.get("dim", argument.default_value)
            return int(given) % rank  # type: ignore[arg-type]
    raise AssertionError(f"{node.target} has no dim")


def dims_of(node: fx.Node) -> tuple[int, ...] | None:
    """The dimensions that a reduction removes; None where it takes all of them."""
    rank = len(shape_of(node.all_input_nodes[0]))
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    given = [given] if isinstance(given, int) else given
    return tuple(sorted(int(dim) % rank for dim in given)) if given else None  # type: ignore[union-attr, arg-type]


def keeps_dims(node: fx.Node) -> bool:
    """The `keepdim` argument of a reduction."""
    return bool(node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False))


def rearranged(node: fx.Node, view: View) -> View | None:
    """The view of `node`'s result, given that of its input, where `node` only reshapes and permutes; else None."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target is aten.as_strided.default or not is_tensor(node):
        return None
    first = target._schema.arguments[0].alias_info if target._schema.arguments else None
    if first is None or first.is_write or not isinstance(node.args[0], fx.Node):
        return None
    if any(isinstance(one, fx.Node) and is_tensor(one) for one in (*node.args[1:], *node.kwargs.values())):
        return None
    if node.meta["val"].dtype != node.args[0].meta["val"].dtype:
        return None
    args, kwargs = fx.map_arg((node.args[1:], dict(node.kwargs)), _number)
    return meaning(view, target, (None, *args), kwargs, shape_of(node))


def _number(node: fx.Node) -> Any:
    value = node.meta["val"]
    return concrete(size_of(value)) if isinstance(value, int | torch.SymInt) else value


def gelu_of(node: fx.Node) -> str | None:
    """How a node computes GELU, as a kernel does it (`operation.GELUS`); None where it is something else."""
    if node.target is not aten.gelu.default:
        return None
    approximate = arguments(node)["approximate"]
    return next(name for name, spelled in GELUS.items() if spelled == approximate)


def convolution_arguments(node: fx.Node) -> tuple[Any, ...]:
    """(x, kernel, bias, stride, padding, dilation, groups) of a conv2d, with defaults for what it leaves out."""
    return (*node.args, *(None, [1, 1], [0, 0], [1, 1], 1)[len(node.args) - 2 :])


def convolves_maps(node: fx.Node) -> bool:
    """Whether a node is a conv2d of a batch of maps; without a batch its channels would be its first dimension."""
    return node.target is aten.conv2d.default and len(shape_of(node)) == 4


def is_pointwise_convolution(node: fx.Node) -> bool:
    """Whether a node is a convolution that gives for each place what is at that place alone, of all channels."""
    if node.target not in CONVOLUTIONS:
        return False
    _, kernel, _, stride, padding, _, groups = convolution_arguments(node)
    apart = isinstance(padding, str) or not any(padding)  # a kernel of one place is padded by nothing
    return apart and groups == 1 and {*stride} == {1} == {*shape_of(kernel)[2:]}


def is_getitem(node: fx.Node) -> bool:
    """Whether a node takes one tensor out of a list."""
    return node.target is operator.getitem


def terms(node: fx.Node) -> list[fx.Node]:
    """The terms of a sum that nothing else reads, all of one shape; `node` alone where it is something else."""
    if node.target is aten.add.Tensor and len(node.users) == 1:
        return summands(node)
    return [node]


def summands(node: fx.Node) -> list[fx.Node]:
    """The terms of the sum `node`, whoever reads it; `node` alone where it is something else."""
    if node.target is aten.add.Tensor and not node.kwargs:
        first, second = node.args[:2]
        if isinstance(first, fx.Node) and isinstance(second, fx.Node) and shape_of(first) == shape_of(second):
            return [*terms(first), *terms(second)]
    return [node]
