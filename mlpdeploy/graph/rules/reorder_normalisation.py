"""A LayerNorm of rearranged channels normalises them in the order in which they lie.

before: `b h w (r o)` -> permute -> `b h w (o r)` -> layer_norm with gamma, beta[(o r)]              (RaftMLP)
after:  layer_norm with gamma, beta[(r o)] -> permute -> `b h w (o r)`

Mean and variance do not depend on the order, and the affine parameters are reordered once. The permute behind the norm
is then one with those that follow it, and the residual stream is read as it lies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.kinds import shape_of
from mlpdeploy.graph.layout.view import Group, flat
from mlpdeploy.graph.matching.rearrangements import Chain, chains
from mlpdeploy.graph.rule import Refused, Rule

aten = torch.ops.aten


def find(editor: Editor, node: fx.Node) -> Chain | Refused | None:
    """The rearrangement in front of such a norm."""
    if node.target is not aten.layer_norm.default or len(node.args[1]) != 1:  # type: ignore[arg-type]
        return None
    chain = next((chain for chain in chains(node.args[0]) if _dimensions(chain) is not None), None)  # type: ignore[arg-type]
    computed = any(arg is not None and weight(editor.module, arg) is None for arg in node.args[2:4])
    if chain is not None and computed:
        return Refused("its affine parameters are computed from the inputs")
    return chain


def replace(editor: Editor, node: fx.Node, chain: Chain) -> fx.Node:
    """The norm in front, and the rearrangement behind it."""
    return chain.replayed(editor, _normalised(editor, node, chain))


def _dimensions(chain: Chain) -> int | None:
    """How many of the source's last dimensions hold the axes that are normalised, in another order than there."""
    axes, stored = chain.view.seen[-1], chain.view.stored
    for count in range(1, len(stored) + 1):
        held = flat(stored[-count:])
        if len(held) >= len(axes):
            return count if held != axes and set(held) == set(axes) else None
    return None


def _normalised(editor: Editor, node: fx.Node, chain: Chain) -> fx.Node:
    """The norm of the chain's source over its last dimensions."""
    count = _dimensions(chain)
    assert count is not None
    arguments: Any = (*node.args, *(None, None, 1e-5, True)[len(node.args) - 2 :])
    shape = [int(size) for size in shape_of(chain.source)[-count:]]
    lies = flat(chain.view.stored[-count:])
    affine = [_reordered(editor, arg, chain.view.seen[-1], lies, shape, node) for arg in arguments[2:4]]
    return editor.call(node.target, (chain.source, shape, *affine, *arguments[4:]), origin=node)


def _reordered(
    editor: Editor, constant: fx.Node | None, axes: Group, lies: Group, shape: list[int], origin: fx.Node
) -> fx.Node | None:
    if constant is None:
        return None
    tensor = weight(editor.module, constant)
    assert tensor is not None
    factored = tensor.reshape([axis.size for axis in axes]).permute([axes.index(axis) for axis in lies])
    return editor.constant(factored.reshape(shape), str(constant.target), origin=origin)


RULE = Rule("reorder_normalisation", "normalise", find, replace)
