"""A projection of which only parts are used becomes one projection for each part.

before: linear(x, W) -> chunk -> u, v                           (GLU, SwiGLU, on channels or on tokens)
after:  u = linear(x, W_u), v = linear(x, W_v)

before: conv2d(x, W) -> u = y[:, :k], v = y[:, k:]
after:  u = conv2d(x, W[:k]), v = conv2d(x, W[k:])

The parts are never copied out of a larger tensor; with a dynamic batch TensorRT computes no slice sizes at run time.
Where an activation lies behind the projection, see `split_activation`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor, is_linear_of_constants, weight
from mlpdeploy.graph.kinds import (
    SPLITS,
    arguments,
    convolution_arguments,
    convolves_maps,
    dim_of,
    is_getitem,
    is_pointwise,
    shape_of,
)
from mlpdeploy.graph.rule import Refused, Rule

aten = torch.ops.aten

LINEAR, LEFT, CONVOLUTION = -1, -2, -3
"""Kinds of projections, by the dimension that they produce."""

Cuts = dict[fx.Node, tuple[int, int]]
"""What takes parts of a dimension: the first index, and behind the last."""


@dataclass(frozen=True)
class Parted:
    """A projection and the pointwise operations behind it, and what takes parts of the result along `dim`."""

    chain: tuple[fx.Node, ...]
    dim: int
    cuts: Cuts


def find(editor: Editor, node: fx.Node, activated: bool = False) -> Parted | Refused | None:
    """A projection of which parts alone are used: one whose result is `activated`, or all others."""
    dim = _produced(editor, node)
    if dim is None:
        return None
    chain = _chain(node)
    acts = any(len(link.all_input_nodes) == 1 for link in chain[1:])
    cuts = _cuts(chain[-1], dim) if acts == activated else None
    if cuts is None or isinstance(cuts, Refused):
        return cuts
    if dim == CONVOLUTION and convolution_arguments(node)[-1] != 1:
        return Refused("it is a grouped convolution")
    if any(end > start for (_, end), (start, _) in itertools.pairwise(sorted(set(cuts.values())))):
        return Refused("its parts overlap")
    return Parted(tuple(chain), dim, cuts)


def replace(editor: Editor, node: fx.Node, found: Parted) -> None:
    """A chain of operations for each part, in the place of what takes it."""
    last, parts = found.chain[-1], dict[tuple[int, int], fx.Node]()
    with editor.before(last.next):
        for cut, rows in found.cuts.items():
            if rows not in parts:
                parts[rows] = _part(editor, found, slice(*rows))
            cut.replace_all_uses_with(parts[rows])


def _produced(editor: Editor, node: fx.Node) -> int | None:
    if is_linear_of_constants(node):
        return LINEAR
    if node.target is aten.matmul.default and weight(editor.module, node.args[0]) is not None:
        return LEFT
    convolves = convolves_maps(node) and weight(editor.module, node.args[1]) is not None
    return CONVOLUTION if convolves else None


def _chain(node: fx.Node) -> list[fx.Node]:
    """The projection, and the pointwise operations that follow and read one activation each."""
    chain = [node]
    while len(chain[-1].users) == 1:
        user = next(iter(chain[-1].users))
        active = [operand for operand in user.all_input_nodes if operand.op != "get_attr"]
        if not is_pointwise(user) or active != [chain[-1]] or shape_of(user) != shape_of(node):
            break
        chain.append(user)
    return chain


def _cuts(last: fx.Node, dim: int) -> Cuts | Refused | None:
    """What takes parts of `last` along a dimension; None where nothing does."""
    place = len(shape_of(last)) + dim
    takers = [user for user in last.users if user.target in {*SPLITS, aten.slice.Tensor} and dim_of(user) == place]
    cuts: Cuts = {}
    for user in takers:
        if user.target is aten.slice.Tensor:
            given = arguments(user)
            bounds = given["start"], given["end"]
            if given["step"] != 1 or any(isinstance(bound, fx.Node) for bound in bounds):
                return None
            cuts[user] = slice(*bounds).indices(int(shape_of(last)[place]))[:2]
            continue
        if not all(map(is_getitem, user.users)):
            return Refused("its parts are used as a list")
        ends = [*itertools.accumulate(int(part.shape[place]) for part in user.meta["val"])]
        begins = [0, *ends]
        for one in user.users:
            index: Any = one.args[1]
            cuts[one] = begins[index], ends[index]
    if takers and len(takers) < len(last.users):
        return Refused("the whole result is used as well")
    return cuts or None


def _part(editor: Editor, found: Parted, rows: slice) -> fx.Node:
    """The last of the chain for some rows of the projection."""
    node, *links = found.chain
    result = _projected(editor, node, found.dim, rows)
    for link in links:
        operands = {
            one: _rows(editor, one, rows, found.dim) if one.op == "get_attr" else result for one in link.all_input_nodes
        }
        args, kwargs = fx.map_arg((link.args, dict(link.kwargs)), operands.__getitem__)
        result = editor.call(link.target, args, kwargs, origin=link)
    return result


def _projected(editor: Editor, node: fx.Node, dim: int, rows: slice) -> fx.Node:
    """The projection with some rows of its weight and bias."""
    if dim == LEFT:
        return editor.call(node.target, (_rows(editor, node.args[0], rows, -2), node.args[1]), origin=node)
    x, matrix, bias, *rest = (*node.args, None)[: max(3, len(node.args))]
    part = _rows(editor, matrix, rows, -2 if dim == LINEAR else -4)
    shift = None if bias is None else _rows(editor, bias, rows, -1)
    return editor.call(node.target, (x, part, shift, *rest), dict(node.kwargs), origin=node)


def _rows(editor: Editor, constant: Any, rows: slice, dim: int) -> fx.Node:
    """Part of a constant along `dim`; the constant itself where it broadcasts along it."""
    tensor = weight(editor.module, constant)
    assert tensor is not None
    if tensor.dim() < -dim or tensor.shape[dim] == 1:
        whole: fx.Node = constant
        return whole
    index: tuple[Any, ...] = (..., rows, *(slice(None),) * (-dim - 1))
    return editor.constant(tensor[index], f"{constant.target}_{rows.start}", origin=constant)


RULE = Rule("split_projection", "algebra", find, replace, after=("fold_affine", "project_patches"))
