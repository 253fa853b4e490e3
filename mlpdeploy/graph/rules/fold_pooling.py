"""Pooling less its own input forgets a shift and commutes with a scale, so one scale is left, in the norm where it can.

before: z = group_norm(x, gamma, beta) -> (avg_pool2d(z) - z) * scale                       (PoolFormer's token mixing)
after:  z = group_norm(x, gamma * scale, 0) -> avg_pool2d(z) - z

The mean of a constant over the neighbours inside the image is that constant, so whatever a channel was shifted by is
gone in the difference. Behind another normalisation, `x * alpha + beta -> (avg_pool2d(z) - z) * scale` becomes
`(avg_pool2d(x) - x) * (alpha * scale)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.kinds import arguments, shape_of
from mlpdeploy.graph.matching.affine import Affine, affine
from mlpdeploy.graph.rule import Refused, Rule, drop

aten = torch.ops.aten


@dataclass(frozen=True)
class Mixing:
    """`difference` = (`pool` of z) - z, with z = `source` after `front`, and `behind` it scales that alone read it.

    `alone`: whether nothing else reads `source`.
    """

    difference: fx.Node
    pool: fx.Node
    source: fx.Node
    front: tuple[Affine, ...]
    behind: tuple[Affine, ...]
    alone: bool

    @property
    def scale(self) -> torch.Tensor:
        """Everything that the difference is multiplied with, (1, c, 1, 1)."""
        total = torch.ones(1, shape_of(self.source)[1], 1, 1, dtype=torch.float64)
        for link in (*self.front, *self.behind):
            total = total if link.scale is None else total * link.scale
        return total


def find(editor: Editor, node: fx.Node) -> Mixing | Refused | None:
    """Such a difference and what is around it, where that saves an operation."""
    pool: Any = node.args[0] if node.target is aten.sub.Tensor and not node.kwargs else None
    if not isinstance(pool, fx.Node) or pool.target is not aten.avg_pool2d.default or pool.args[0] != node.args[1]:
        return None
    mixing = _around(editor, node, pool)
    if not _saves(mixing, _norm(editor, mixing)):
        return None
    reason = _refusal(pool)
    return mixing if reason is None else Refused(reason)


def _around(editor: Editor, difference: fx.Node, pool: fx.Node) -> Mixing:
    source: Any = pool.args[0]
    readers, front, behind = {pool, difference}, [], []
    while set(source.users) == readers and (link := affine(editor.module, source)) is not None and link.varies(1):
        front.append(link)
        readers, source = {source}, link.source
    last = difference
    while len(last.users) == 1 and (link := affine(editor.module, next(iter(last.users)))) is not None:
        if link.source is not last or link.shift is not None or not link.varies(1):
            break
        behind.append(link)
        last = link.node
    return Mixing(difference, pool, source, tuple(front), tuple(behind), set(source.users) == readers)


def _norm(editor: Editor, mixing: Mixing) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Scale and shift (c) of the group norm whose result is mixed, where they are constants that may be replaced."""
    source = mixing.source
    if source.target is not aten.group_norm.default or not mixing.alone:
        return None
    scale, shift = (weight(editor.module, arg) for arg in (*source.args[2:4], None, None)[:2])
    return None if scale is None or shift is None else (scale, shift)


def _saves(mixing: Mixing, norm: tuple[torch.Tensor, torch.Tensor] | None) -> bool:
    links = len(mixing.front) + len(mixing.behind)
    if norm is not None:
        return links > 0 or bool(norm[1].any())
    return links > bool((mixing.scale != 1).any())


def _refusal(pool: fx.Node) -> str | None:
    given = arguments(pool)
    if list(given["stride"]) not in ([1], [1, 1]) or shape_of(pool) != shape_of(given["self"]):
        return "its pooling strides"
    padded = given["count_include_pad"] or given["divisor_override"] is not None
    return "its pooling counts zeros around the image" if padded else None


def replace(editor: Editor, node: fx.Node, mixing: Mixing) -> None:
    """The difference with one scale, in the norm where there is one."""
    norm, source, pool = _norm(editor, mixing), mixing.source, mixing.pool
    last = mixing.behind[-1].node if mixing.behind else mixing.difference
    dtype = source.meta["val"].dtype
    if norm is not None:
        with editor.before(source):
            name = f"{source.args[2].target}_folded"  # type: ignore[union-attr]
            scale = editor.constant((norm[0].double() * mixing.scale.flatten()).to(dtype), name, origin=source)
            shift = editor.constant(torch.zeros_like(norm[1]), "zero_shift", origin=source)
        source.args = (*source.args[:2], scale, shift, *source.args[4:])
    with editor.before(last):
        pooled = editor.call(pool.target, (source, *pool.args[1:]), origin=pool)
        result = editor.call(aten.sub.Tensor, (pooled, source), origin=mixing.difference)
        if norm is None and bool((mixing.scale != 1).any()):
            scale = editor.constant(mixing.scale.to(dtype), "pooling_scale", origin=last)
            result = editor.call(aten.mul.Tensor, (result, scale), origin=last)
    last.replace_all_uses_with(result)
    drop(editor, [last])


RULE = Rule("fold_pooling", "algebra", find, replace)
