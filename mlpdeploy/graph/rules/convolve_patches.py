"""A linear on unfolded patches, of one size or of several around the same centres, is a convolution.

before: linear(cat(unfold(x, 4, stride 2, padding 1), unfold(x, 2, stride 2)), W)           (RaftMLP's embedding)
after:  conv2d(x, K, stride 2, padding 1): K is the sum of both kernels, the smaller one padded with zeros

The patches overlap, so unfolding copies every number several times; the convolution reads them where they are.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from mlpdeploy.graph.editor import Editor, is_linear_of_constants, weight
from mlpdeploy.graph.kinds import dim_of, shape_of
from mlpdeploy.graph.matching.rearrangements import back
from mlpdeploy.graph.rule import Refused, Rule

aten = torch.ops.aten


@dataclass(frozen=True)
class Unfolding:
    """One unfolding: of which image, and the size, dilation, padding and stride of its patches."""

    image: fx.Node
    size: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    stride: tuple[int, int]


def find(editor: Editor, node: fx.Node) -> list[Unfolding] | Refused | None:
    """The unfoldings whose patches are the columns of a linear."""
    patches = _patches(node.args[0]) if is_linear_of_constants(node) else None  # type: ignore[arg-type]
    reason = None if patches is None else _refusal(patches)
    return patches if reason is None else Refused(reason)


def _patches(node: fx.Node) -> list[Unfolding] | None:
    """The unfoldings whose columns, one after another, are the last dimension of `node`; None where others are."""
    if node.target is aten.cat.default and dim_of(node) == len(shape_of(node)) - 1:
        return _joined([_patches(part) for part in node.args[0]])  # type: ignore[union-attr, arg-type]
    chain = back(node)
    dims = len(chain.view.stored)
    if dims != 3 or chain.view.seen != tuple(chain.view.stored[dim] for dim in (0, 2, 1)):
        return None
    return _unfolded(chain.source)


def _unfolded(node: fx.Node) -> list[Unfolding] | None:
    """The unfoldings whose rows, one after another, are dimension 1 of `node`."""
    if node.target is aten.cat.default and dim_of(node) == 1:
        return _joined([_unfolded(part) for part in node.args[0]])  # type: ignore[union-attr, arg-type]
    if node.target is not aten.im2col.default:
        return None
    image, *numbers = node.args
    if len(shape_of(image)) != 4:  # type: ignore[arg-type]
        return None
    return [Unfolding(image, *(tuple(pair) for pair in numbers))]  # type: ignore[arg-type]


def _joined(parts: list[list[Unfolding] | None]) -> list[Unfolding] | None:
    return None if any(part is None for part in parts) else [one for part in parts for one in part or ()]


def _refusal(patches: list[Unfolding]) -> str | None:
    if len({(one.image, one.stride) for one in patches}) != 1:
        return "its patches are not those of one image, equally far apart"
    if any(one.dilation != (1, 1) for one in patches):
        return "its patches are dilated"
    largest = _largest(patches)
    if any(_margins(one, largest) is None for one in patches):
        return "its patches do not lie inside the largest of them"
    return None


def _largest(patches: list[Unfolding]) -> Unfolding:
    return max(patches, key=lambda one: (one.padding, one.size))


def _margins(one: Unfolding, largest: Unfolding) -> list[int] | None:
    """Zeros around the kernel of `one` in that of `largest`, as `F.pad` wants them; None where it does not fit."""
    margins: list[int] = []
    for dim in (1, 0):
        before = largest.padding[dim] - one.padding[dim]
        after = largest.size[dim] - one.size[dim] - before
        # With as much around it on the far side, it has as many places as the largest has.
        if before < 0 or after != before:
            return None
        margins += [before, after]
    return margins


def replace(editor: Editor, node: fx.Node, patches: list[Unfolding]) -> fx.Node:
    """The convolution, flattened."""
    arguments: Any = (*node.args, None)[:3]
    matrix, bias = weight(editor.module, arguments[1]), arguments[2]
    assert matrix is not None
    largest, channels = _largest(patches), int(shape_of(patches[0].image)[1])
    parts = matrix.split([channels * one.size[0] * one.size[1] for one in patches], dim=1)
    kernels = [
        F.pad(part.unflatten(1, (channels, *one.size)), _margins(one, largest) or [0] * 4)
        for part, one in zip(parts, patches, strict=True)
    ]
    kernel = editor.constant(functools.reduce(torch.add, kernels), f"{arguments[1].target}_kernel", origin=node)
    options = (bias, list(largest.stride), list(largest.padding))
    result = editor.call(aten.conv2d.default, (largest.image, kernel, *options), origin=node)
    batch, rows, high, wide = shape_of(result)
    flat = editor.reshape(result, [batch, rows, high * wide], origin=node)
    return editor.permute(flat, [0, 2, 1], origin=node)


RULE = Rule("convolve_patches", "normalise", find, replace)
