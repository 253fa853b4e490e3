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

from mlpdeploy.graph.affine import Affine, affine
from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.kinds import shape_of
from mlpdeploy.graph.rule import Log, Rule

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


def rewrite(editor: Editor, log: Log) -> None:
    """Fold around every such difference."""
    for node in list(editor.graph.nodes):
        pool: Any = node.args[0] if node.target is aten.sub.Tensor and not node.kwargs else None
        if not isinstance(pool, fx.Node) or pool.target is not aten.avg_pool2d.default or pool.args[0] != node.args[1]:
            continue
        mixing = _around(editor, node, pool)
        norm = _norm(editor, mixing)
        if not _saves(mixing, norm):
            continue
        if (reason := _refusal(pool)) is not None:
            log.refused(node, reason)
            continue
        _replace(editor, mixing, norm)
        log.fired()


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
    arguments: Any = (*pool.args, *(None, [], [0, 0], False, True, None)[len(pool.args) - 1 :])
    stride, include_pad, divisor = arguments[2], arguments[5], arguments[6]
    if list(stride) not in ([1], [1, 1]) or shape_of(pool) != shape_of(arguments[0]):
        return "its pooling strides"
    return "its pooling counts zeros around the image" if include_pad or divisor is not None else None


def _replace(editor: Editor, mixing: Mixing, norm: tuple[torch.Tensor, torch.Tensor] | None) -> None:
    source, pool = mixing.source, mixing.pool
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


RULE = Rule("fold_pooling", phase="algebra", rewrite=rewrite)
