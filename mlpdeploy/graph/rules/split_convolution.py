"""A convolution whose result is cut into groups of channels becomes one convolution for each group.

before: conv2d(x, W) -> gelu -> u = y[:, :k], v = y[:, k:]                    (Strip-MLP: one half through the strips)
after:  u = gelu(conv2d(x, W[:k])), v = gelu(conv2d(x, W[k:]))

The groups are never copied out of a larger map; with a dynamic batch TensorRT computes no slice sizes at run time.
"""

from __future__ import annotations

import itertools
import operator
from typing import Any

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.kinds import SPLITS, dim_of, is_pointwise, shape_of
from mlpdeploy.graph.rule import Log, Rule

aten = torch.ops.aten

Cuts = dict[fx.Node, tuple[int, int]]
"""Groups of channels by the node that takes them out: the first, and behind the last."""


def rewrite(editor: Editor, log: Log) -> None:
    """Split every convolution whose groups alone are used."""
    for node in list(editor.graph.nodes):
        if node.target is not aten.conv2d.default or weight(editor.module, node.args[1]) is None:
            continue
        chain = _chain(node)
        cuts = _cuts(chain[-1])
        if cuts is None or len(cuts) < 2:
            continue
        if (reason := _refusal(node, cuts)) is not None:
            log.refused(node, reason)
            continue
        for cut, (start, end) in cuts.items():
            with editor.before(node):
                cut.replace_all_uses_with(_part(editor, chain, slice(start, end)))
        log.fired()
    editor.graph.eliminate_dead_code()


def _chain(node: fx.Node) -> list[fx.Node]:
    """The convolution, and the pointwise operations that follow and read one activation each."""
    chain = [node]
    while len(chain[-1].users) == 1:
        user = next(iter(chain[-1].users))
        active = [operand for operand in user.all_input_nodes if operand.op != "get_attr"]
        if not is_pointwise(user) or active != [chain[-1]] or shape_of(user) != shape_of(node):
            break
        chain.append(user)
    return chain


def _cuts(last: fx.Node) -> Cuts | None:
    """What takes groups of channels out of `last`; None where something else reads it."""
    cuts: Cuts = {}
    for user in last.users:
        if user.target is aten.slice.Tensor and dim_of(user) == 1:
            names = [argument.name for argument in user.target._schema.arguments]
            given: dict[str, Any] = dict(zip(names, user.args, strict=False)) | dict(user.kwargs)
            if given.get("step", 1) != 1:
                return None
            start, end, _ = slice(given.get("start"), given.get("end")).indices(int(shape_of(last)[1]))
            cuts[user] = (start, end)
        elif user.target in SPLITS and dim_of(user) == 1 and all(u.target is operator.getitem for u in user.users):
            sizes = [int(part.shape[1]) for part in user.meta["val"]]
            starts = [sum(sizes[:index]) for index in range(len(sizes))]
            cuts |= {u: (starts[u.args[1]], starts[u.args[1]] + sizes[u.args[1]]) for u in user.users}  # type: ignore[index]
        else:
            return None
    return cuts


def _refusal(node: fx.Node, cuts: Cuts) -> str | None:
    if (node.args[6] if len(node.args) > 6 else 1) != 1:
        return "it is a grouped convolution"
    ranges = sorted(cuts.values())
    if any(end > start for (_, end), (start, _) in itertools.pairwise(ranges)):
        return "its groups of channels overlap"
    return None


def _part(editor: Editor, chain: list[fx.Node], rows: slice) -> fx.Node:
    """The last of `chain` for some of the channels."""
    node, *links = chain
    x, matrix, *rest = node.args
    bias = rest[0] if rest else None
    arguments = (x, _rows(editor, matrix, rows, -4), None if bias is None else _rows(editor, bias, rows, -1), *rest[1:])
    result = editor.call(node.target, arguments, dict(node.kwargs), origin=node)
    for link in links:
        operands = {arg: _rows(editor, arg, rows, -3) for arg in link.all_input_nodes if arg.op == "get_attr"}
        replaced = operands | {arg: result for arg in link.all_input_nodes if arg.op != "get_attr"}
        args, kwargs = fx.map_arg((link.args, dict(link.kwargs)), replaced.__getitem__)
        result = editor.call(link.target, args, kwargs, origin=link)
    return result


def _rows(editor: Editor, constant: Any, rows: slice, dim: int) -> fx.Node:
    """Part of a constant along `dim`; the constant itself where it broadcasts along it."""
    tensor = weight(editor.module, constant)
    assert tensor is not None
    if tensor.dim() < -dim or tensor.shape[dim] == 1:
        return constant
    index: tuple[Any, ...] = (..., rows, *(slice(None),) * (-dim - 1))
    return editor.constant(tensor[index], f"{constant.target}_{rows.start}", origin=constant)


RULE = Rule("split_convolution", phase="algebra", rewrite=rewrite)
