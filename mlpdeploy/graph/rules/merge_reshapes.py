"""Reshapes in a row become one, through operations that do not mind the shape.

before: reshape -> softmax over the last axis -> reshape             (split attention: b (c k) -> b c k -> b 1 1 c k)
after:  reshape -> softmax

before: mean over h w -> reshape to `b c 1 1`
after:  mean over h w that keeps its dimensions, and the other way round

An engine may copy, and TensorRT's network has a layer, for each reshape that is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.kinds import REDUCTIONS, arguments, dim_of, dims_of, is_pointwise, keeps_dims, shape_of
from mlpdeploy.graph.rule import Rule

aten = torch.ops.aten


@dataclass(frozen=True)
class Mergeable:
    """Which dimensions a reduction drops or keeps instead; or the operations between two reshapes."""

    reduction: fx.Node | None = None
    dims: tuple[int, ...] = ()
    between: tuple[fx.Node, ...] = ()


def find(editor: Editor, node: fx.Node) -> Mergeable | None:
    """What a reshape can be merged into."""
    if node.target is not aten.reshape.default:
        return None
    between = _between(node)
    return _reduced(node) or (None if between is None else Mergeable(between=tuple(between)))


def replace(editor: Editor, node: fx.Node, found: Mergeable) -> fx.Node:
    """The same without it."""
    if (reduction := found.reduction) is not None:
        options = {key: value for key, value in reduction.kwargs.items() if key not in ("dim", "keepdim")}
        given = (reduction.args[0], list(found.dims), not keeps_dims(reduction))
        return editor.call(reduction.target, given, options, origin=reduction)
    first: Any = found.between[0].args[0] if found.between else node.args[0]
    result = editor.reshape(first.args[0], shape_of(node), origin=node)
    for link in found.between:
        result = _again(editor, link, result)
    return result


def _reduced(node: fx.Node) -> Mergeable | None:
    """The reduction that `node` alone reads, where `node` only drops its dimensions of 1 or puts them back."""
    reduction: fx.Node = node.args[0]  # type: ignore[assignment]
    if reduction.target not in REDUCTIONS or len(reduction.users) != 1:
        return None
    shape, keep = shape_of(reduction.all_input_nodes[0]), not keeps_dims(reduction)
    dims = dims_of(reduction) or tuple(range(len(shape)))
    wanted = tuple(1 if dim in dims else size for dim, size in enumerate(shape) if keep or dim not in dims)
    return Mergeable(reduction, dims) if shape_of(node) == wanted else None


def _again(editor: Editor, link: fx.Node, x: fx.Node) -> fx.Node:
    """The same operation on `x`."""
    if link.target is aten.softmax.int:
        return editor.call(link.target, (x,), {"dim": -1, "dtype": arguments(link)["dtype"]}, origin=link)
    args, kwargs = fx.map_arg((link.args, dict(link.kwargs)), lambda _: x)
    return editor.call(link.target, args, kwargs, origin=link)


def _between(node: fx.Node) -> list[fx.Node] | None:
    """Operations between an earlier reshape and `node` that give the same in any shape; None where there are none."""
    links: list[fx.Node] = []
    current = node.args[0]
    assert isinstance(current, fx.Node)
    while len(current.users) == 1:
        if current.target is aten.reshape.default:
            return links
        if not _indifferent(current, node):
            return None
        links.insert(0, current)
        current = current.all_input_nodes[0]
    return None


def _indifferent(link: fx.Node, later: fx.Node) -> bool:
    """Pointwise on one tensor, or a softmax over a last axis that the later reshape keeps."""
    if link.target is aten.softmax.int:
        return bool(dim_of(link) == len(shape_of(link)) - 1 and shape_of(later)[-1:] == shape_of(link)[-1:])
    return is_pointwise(link) and len(link.all_input_nodes) == 1


RULE = Rule("merge_reshapes", "algebra", find, replace, after=("hoist_reweighting",))
