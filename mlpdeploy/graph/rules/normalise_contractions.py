"""Every contraction of an activation with a weight becomes one `linear` between permutes.

before: einsum("b t c, u t -> b u c", x, W) · tensordot(x, W, dims) · W @ x · x @ W · Conv1d with kernel 1
after:  linear(permute(x), W) and a permute back

The permutes are views to the layout pass, which removes them; so it has to know one contraction, not six spellings.
Left alone: contractions of two activations (attention), einsums with an index that both operands keep (one weight per
group), repeated or summed-out indices, sizes that broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.kinds import arguments
from mlpdeploy.graph.layout.view import size_of
from mlpdeploy.graph.rule import Refused, Rule, by_target

aten = torch.ops.aten


@dataclass(frozen=True)
class Contraction:
    """tensordot(x, tensor, axes), then permute(order), and a bias. Its dims: x's left over, then the tensor's."""

    x: fx.Node
    tensor: torch.Tensor
    axes: tuple[Sequence[int], Sequence[int]]
    order: Sequence[int]
    bias: fx.Node | None = None


def replace(editor: Editor, node: fx.Node, found: Contraction) -> fx.Node:
    """The contraction as one linear."""
    x, tensor, axes = found.x, found.tensor, found.axes
    shape = [size_of(size) for size in x.meta["val"].shape]
    free = [dim for dim in range(len(shape)) if dim not in axes[0]]
    rows = [dim for dim in range(tensor.dim()) if dim not in axes[1]]
    columns = math.prod(tensor.shape[dim] for dim in axes[1])
    matrix = tensor.permute([*rows, *axes[1]]).reshape(math.prod(tensor.shape[dim] for dim in rows), columns)
    left = editor.permute(x, [*free, *axes[0]], origin=node)
    left = editor.reshape(left, [shape[dim] for dim in free] + [columns], origin=node)
    constant = editor.constant(matrix, f"{node.name}_weight", origin=node)
    result = editor.call(aten.linear.default, (left, constant, found.bias), origin=node)
    result = editor.reshape(result, [shape[dim] for dim in free] + [tensor.shape[dim] for dim in rows], origin=node)
    return editor.permute(result, found.order, origin=node)


def _operands(editor: Editor, nodes: Sequence[Any]) -> tuple[fx.Node, torch.Tensor, bool] | None:
    """(activation, weight, whether the weight comes first), or None where not exactly one of two is a weight."""
    if len(nodes) != 2:
        return None
    first, second = weight(editor.module, nodes[0]), weight(editor.module, nodes[1])
    if (first is None) == (second is None):
        return None
    return (nodes[1], first, True) if first is not None else (nodes[0], second, False)  # type: ignore[return-value]


def _einsum(editor: Editor, node: fx.Node) -> Contraction | Refused | None:
    equation, nodes = node.args[:2]
    found = _operands(editor, nodes)  # type: ignore[arg-type]
    if found is None:
        return None
    x, tensor, swapped = found
    terms, out = _labels(str(equation), [len(operand.meta["val"].shape) for operand in nodes])  # type: ignore[union-attr]
    if swapped:
        terms.reverse()
    mine, theirs = terms
    if len(set(mine)) < len(mine) or len(set(theirs)) < len(theirs):
        return Refused("an index is repeated in one operand")
    shared = [label for label in mine if label in theirs]
    if any(label in out for label in shared):
        return Refused("an index is kept by both operands: one weight per group")
    if any(label not in out and label not in shared for label in mine + theirs):
        return Refused("an index of one operand is summed out alone")
    sizes = x.meta["val"].shape
    if not shared or any(sizes[mine.index(label)] != tensor.shape[theirs.index(label)] for label in shared):
        return Refused("no index is contracted at its full size")
    axes = ([mine.index(label) for label in shared], [theirs.index(label) for label in shared])
    produced = [label for label in mine + theirs if label not in shared]
    return Contraction(x, tensor, axes, [produced.index(label) for label in out])


def _labels(equation: str, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """Index names of each operand and of the result, the ellipsis spelled out from the right as `.0`, `.1`, ..."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = [_term(term, rank) for term, rank in zip(left.split(","), ranks, strict=True)]
    dots = sorted({label for term in terms for label in term if label[0] == "."}, key=lambda label: -int(label[1:]))
    if arrow:
        head, _, tail = right.partition("...")
        return terms, [*head, *(dots if "..." in right else []), *tail]
    named = [label for term in terms for label in term if label[0] != "."]
    return terms, dots + sorted(label for label in named if named.count(label) == 1)


def _term(term: str, rank: int) -> list[str]:
    if "..." not in term:
        return list(term)
    head, _, tail = term.partition("...")
    hidden = rank - len(head) - len(tail)
    return [*head, *(f".{hidden - 1 - index}" for index in range(hidden)), *tail]


def _tensordot(editor: Editor, node: fx.Node) -> Contraction | Refused | None:
    arguments: Any = node.args
    first, second, dims_first, dims_second = arguments[:4]
    found = _operands(editor, (first, second))
    if found is None:
        return None
    x, tensor, swapped = found
    pair = (dims_second, dims_first) if swapped else (dims_first, dims_second)
    axes = ([d % len(x.meta["val"].shape) for d in pair[0]], [d % tensor.dim() for d in pair[1]])
    free, rows = len(x.meta["val"].shape) - len(axes[0]), tensor.dim() - len(axes[1])
    order = [*range(free, free + rows), *range(free)] if swapped else list(range(free + rows))
    return Contraction(x, tensor, axes, order)


def _matmul(editor: Editor, node: fx.Node) -> Contraction | Refused | None:
    found = _operands(editor, node.args)
    if found is None:
        return None
    x, tensor, swapped = found
    rank = len(x.meta["val"].shape)
    if rank < 2 or tensor.dim() < 2 or tensor.dim() > rank or math.prod(tensor.shape[:-2]) != 1:
        return Refused("the weight is not one matrix")
    tensor = tensor.reshape(tensor.shape[-2:])
    if not swapped:
        return Contraction(x, tensor, ([rank - 1], [0]), list(range(rank)))
    return Contraction(x, tensor, ([rank - 2], [1]), [*range(rank - 2), rank - 1, rank - 2])


def _conv1d(editor: Editor, node: fx.Node) -> Contraction | None:
    given = arguments(node)
    x, bias, tensor = given["input"], given["bias"], weight(editor.module, given["weight"])
    if tensor is None or weight(editor.module, x) is not None or len(x.meta["val"].shape) != 3:
        return None
    if tensor.shape[2] != 1 or given["groups"] != 1 or list(given["stride"]) != [1] or list(given["padding"]) != [0]:
        return None
    return Contraction(x, tensor.squeeze(2), ([1], [1]), [0, 2, 1], bias)


FINDS = {
    aten.einsum.default: _einsum,
    aten.tensordot.default: _tensordot,
    aten.matmul.default: _matmul,
    aten.mm.default: _matmul,
    aten.conv1d.default: _conv1d,
}

RULE = Rule("normalise_contractions", "normalise", by_target(FINDS), replace, after=("decompose_complex",))
