"""What follows a segment-grouped projection becomes its epilogue, which a kernel computes before it writes its result.

before: segment_grouped_projection -> + bias -> gelu                                                       (RaftMLP)
after:  segment_grouped_projection_epilogue(bias, gelu)

before: y_c * a_c + reshape(y_h) * a_h + reshape(y_w) * a_w                           (ViP, after hoist_reweighting)
after:  y_c * a_c, onto which y_h * a_h and then y_w * a_w are accumulated; each a is a number per image and channel

Every step that a kernel of ours does not compute is a pass over memory. Engines that run the function's body gain
nothing, so the rule is for those that carry the kernel. Only what nothing else reads is fused with what follows it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from dataclasses import replace as _replaced
from typing import Any

import torch
from torch import fx

from mlpdeploy.graph.custom_ops import SEGMENT_GROUPED_PROJECTION, WITH_EPILOGUE
from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.kinds import gelu_of, shape_of, summands
from mlpdeploy.graph.rule import Refused, Rule

aten = torch.ops.aten


@dataclass(frozen=True)
class _Followed:
    """A projection and the steps behind it: a constant bias, GELU, a scale of the reshaped result."""

    projection: fx.Node
    bias: fx.Node | None = None
    gelu: str | None = None
    scale: fx.Node | None = None


@dataclass(frozen=True)
class _Total:
    """A sum: the projections among its terms, and the others."""

    projections: tuple[_Followed, ...]
    rest: tuple[fx.Node, ...]


def find(editor: Editor, node: fx.Node) -> _Total | _Followed | Refused | None:
    """A sum with projections among its terms; or the bias or GELU behind one."""
    if node.target is aten.add.Tensor and not _is_term(node) and (found := _total(editor, node)) is not None:
        return found
    followed = _followed(editor, node)
    return followed if followed is not None and followed.projection is not node else None


def replace(editor: Editor, node: fx.Node, found: _Total | _Followed) -> fx.Node:
    """The projection with its epilogue; of a sum, each accumulated onto what the others give."""
    if isinstance(found, _Followed):
        return editor.reshape(_call(editor, found, None, node), shape_of(node), origin=node)
    result = found.rest[0]
    for term in found.rest[1:]:
        result = editor.call(aten.add.Tensor, (result, term), origin=node)
    for one in found.projections:
        result = _call(editor, one, result, node)
    return result


def _is_term(node: fx.Node) -> bool:
    """Whether a sum is a part of a larger one."""
    users = list(node.users)
    return len(users) == 1 and len(summands(users[0])) > len(summands(node))


def _total(editor: Editor, total: fx.Node) -> _Total | Refused | None:
    """The sum that `total` ends; None where no term is a projection, or there is one term alone."""
    terms = summands(total)
    known = {term: _term(editor, term, total) for term in terms} if len(terms) > 1 else {}
    found = {term: one for term, one in known.items() if isinstance(one, _Followed)}
    if not found:
        return next((one for one in known.values() if isinstance(one, Refused)), None)
    rest = [term for term in terms if term not in found] or [found.popitem()[0]]
    return _Total(tuple(found.values()), tuple(rest)) if found else None


def _term(editor: Editor, term: fx.Node, total: fx.Node) -> _Followed | Refused | None:
    """What a term of a sum is; None where it is no projection, Refused where the kernel cannot scale it so."""
    for value, scale in _factors(term):
        steps = [value]
        while steps[-1].target is aten.reshape.default:
            steps.append(steps[-1].all_input_nodes[0])
        alone = all(len(step.users) == 1 for step in (term, *steps))
        if not alone or (found := _followed(editor, steps[-1])) is None:
            continue
        if scale is not None and (reason := _misfit(found.projection, scale, total)) is not None:
            return Refused(reason)
        return _replaced(found, scale=scale)
    return None


def _factors(term: fx.Node) -> list[tuple[fx.Node, fx.Node | None]]:
    """A term as a value and its scale, in both orders; as it is where it is no product."""
    if term.target is not aten.mul.Tensor:
        return [(term, None)]
    first, second = term.args
    nodes = isinstance(first, fx.Node) and isinstance(second, fx.Node)
    return [(first, second), (second, first)] if nodes else []  # type: ignore[list-item]


def _followed(editor: Editor, node: fx.Node) -> _Followed | None:
    """The projection that `node` is, or whose bias or GELU it is, where nothing else reads what is before it."""
    if not node.users or node.op != "call_function":
        return None
    gelu = gelu_of(node)
    read: Any = node.args[0] if gelu is not None else node
    shifted: Any = read.args[0] if gelu is not None and read.target is aten.reshape.default else read
    projection, bias = _biased(editor, shifted) or (shifted, None)
    if projection.target is not SEGMENT_GROUPED_PROJECTION:
        return None
    alone = all(len(step.users) == 1 for step in (projection, shifted, read) if step is not node)
    return _Followed(projection, bias, gelu) if alone else None


def _biased(editor: Editor, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The projection and the bias whose sum `node` is."""
    if node.target is not aten.add.Tensor or node.kwargs:
        return None
    first, second = node.args
    pairs: list[Any] = [(first, second), (second, first)]
    return next(((one, two) for one, two in pairs if _is_bias(editor, one, two)), None)


def _is_bias(editor: Editor, projection: Any, bias: Any) -> bool:
    """Whether `bias` is a constant (K, 1, T), with a trailing axis (K, 1, T, 1)."""
    if not isinstance(projection, fx.Node) or projection.target is not SEGMENT_GROUPED_PROJECTION:
        return False
    constant, (_, k, _, t, *trailing) = weight(editor.module, bias), shape_of(projection)
    return constant is not None and tuple(constant.shape) == (k, 1, t, *(1 for _ in trailing))


def _misfit(projection: fx.Node, scale: fx.Node, total: fx.Node) -> str | None:
    """Why the kernel cannot multiply by `scale`: it takes a number for each image and channel."""
    images, *middle, channels = shape_of(total)
    if shape_of(scale) != (images, *(1 for _ in middle), channels):
        return "its scale is not one number for each image and channel"
    _, k, q, t, *trailing = shape_of(projection)
    run = t * (trailing[0] if trailing else 1)
    if not all(isinstance(size, int) for size in (channels, q, *middle)):
        return "its channels depend on the batch"
    if channels % run or q % (channels // run) or channels * math.prod(middle) % (k * q * run):
        return "its channels are not the last parts of what the projection produces"
    return None


def _call(editor: Editor, found: _Followed, accumulate: fx.Node | None, origin: fx.Node) -> fx.Node:
    arguments = (*found.projection.args, found.bias, found.gelu, found.scale, accumulate)
    return editor.call(WITH_EPILOGUE, arguments, origin=origin if accumulate is None else found.projection)


RULE = Rule("fuse_epilogues", "fusion", find, replace, backwards=True, for_kernel=True)  # whole sums before their terms
