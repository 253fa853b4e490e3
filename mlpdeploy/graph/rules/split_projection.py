"""A projection whose result is split becomes one projection for each part.

before: linear(x, W) -> chunk -> u, v                      (GLU, SwiGLU, on channels or on tokens)
after:  u = linear(x, W_u), v = linear(x, W_v)

The parts are never copied out of a larger tensor; with a dynamic batch TensorRT computes no slice sizes at run time.
Where an activation lies in between, see `split_activation`.
"""

from __future__ import annotations

import functools
import itertools
import operator
from typing import Any

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor, is_linear_of_constants, weight
from mlpdeploy.graph.kinds import SPLITS, dim_of, is_pointwise, shape_of
from mlpdeploy.graph.rule import Log, Rule

aten = torch.ops.aten


def split(editor: Editor, log: Log, activated: bool) -> None:
    """Split every projection whose parts alone are used, and that has, or has not, an activation before the split."""
    for node in list(editor.graph.nodes):
        if node.target not in SPLITS:
            continue
        chain = _chain(editor, node, activated)
        if isinstance(chain, str):
            log.refused(node, chain)
        elif chain:
            _split(editor, node, chain)
            log.fired()


def _chain(editor: Editor, node: fx.Node, activated: bool) -> list[fx.Node] | str | None:
    """The projection and the pointwise operations up to the split `node`; a reason, or None, where it is not so."""
    dim = dim_of(node) - len(shape_of(node.all_input_nodes[0]))
    chain: list[fx.Node] = []
    current = node.all_input_nodes[0]
    while True:
        chain.insert(0, current)
        if is_linear_of_constants(current):
            found = dim == -1
            break
        if current.target is aten.matmul.default and weight(editor.module, current.args[0]) is not None:
            found = dim == -2
            break
        active = [operand for operand in current.all_input_nodes if operand.op != "get_attr"]
        if not is_pointwise(current) or len(active) != 1 or shape_of(active[0]) != shape_of(current):
            return None
        current = active[0]
    if not found or activated != any(len(link.all_input_nodes) == 1 for link in chain[1:]):
        return None
    if any(len(link.users) != 1 for link in chain):
        return "the whole result is used as well"
    if any(user.target is not operator.getitem for user in node.users):
        return "its parts are used as a list"
    return chain


def _split(editor: Editor, node: fx.Node, chain: list[fx.Node]) -> None:
    sizes = [int(part.shape[dim_of(node)]) for part in node.meta["val"]]
    starts = itertools.accumulate(sizes, initial=0)
    projection, *links = chain
    dim = -1 if is_linear_of_constants(projection) else -2
    parts: dict[int, fx.Node] = {}
    with editor.before(node):
        for index, (start, size) in enumerate(zip(starts, sizes, strict=False)):
            rows = slice(start, start + size)
            parts[index] = _projected(editor, projection, rows)
            for link in links:
                operands = {arg: _part(editor, arg, rows, dim) for arg in link.all_input_nodes if arg.op == "get_attr"}
                operands |= {arg: parts[index] for arg in link.all_input_nodes if arg.op != "get_attr"}
                args, kwargs = fx.map_arg((link.args, dict(link.kwargs)), operands.__getitem__)
                parts[index] = editor.call(link.target, args, kwargs, origin=link)
    for user in list(node.users):
        user.replace_all_uses_with(parts[user.args[1]])  # type: ignore[index]


def _projected(editor: Editor, projection: fx.Node, rows: slice) -> fx.Node:
    """The projection with some rows of its weight and bias."""
    if not is_linear_of_constants(projection):
        matrix, x = projection.args
        return editor.call(projection.target, (_part(editor, matrix, rows, -2), x), origin=projection)  # type: ignore[arg-type]
    x, matrix, bias = (*projection.args, None)[:3]
    part = _part(editor, matrix, rows, -2)  # type: ignore[arg-type]
    bias = None if bias is None else _part(editor, bias, rows, -1)  # type: ignore[arg-type]
    return editor.call(projection.target, (x, part, bias), origin=projection)


def _part(editor: Editor, constant: fx.Node, rows: slice, dim: int) -> fx.Node:
    """Rows of a weight along `dim`; the weight itself where it broadcasts along it."""
    tensor = weight(editor.module, constant)
    assert tensor is not None
    if tensor.dim() < -dim or tensor.shape[dim] == 1:
        return constant
    index: tuple[Any, ...] = (..., rows, *(slice(None),) * (-dim - 1))
    return editor.constant(tensor[index], f"{constant.target}_{rows.start}", origin=constant)


RULE = Rule("split_projection", phase="algebra", rewrite=functools.partial(split, activated=False))
