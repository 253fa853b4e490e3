"""Operations that do nothing at inference go: dropout, clone, casts to the same dtype, whole slices, cat of one.

before: linear -> dropout(p, train=False) -> linear
after:  linear -> linear

An engine would drop them as well; the rules after this one would have to look through them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.kinds import shape_of
from mlpdeploy.graph.rule import Rule

aten = torch.ops.aten

ALWAYS = {
    aten.clone.default,
    aten.detach.default,
    aten.alias.default,
    aten.contiguous.default,
    aten.lift_fresh_copy.default,
}
DROPOUTS = {aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default}
CASTS = {aten.to.dtype, aten._to_copy.default, aten.to.dtype_layout, aten.to.device, aten.type_as.default}


def find(editor: Editor, node: fx.Node) -> bool | None:
    """Whether it does nothing."""
    return _is_identity(node) or None


def _is_identity(node: fx.Node) -> bool:
    given: Any = node.args
    if node.target in DROPOUTS:
        return bool(not given[2] or given[1] == 0)
    if node.target in CASTS:
        return bool(node.meta["val"].dtype == given[0].meta["val"].dtype)
    if node.target is aten.slice.Tensor:
        return shape_of(node) == shape_of(given[0])
    if node.target is aten.pad.default:
        return not any(given[1])
    if node.target is aten.cat.default:
        return len(given[0]) == 1
    return node.target in ALWAYS


def replace(editor: Editor, node: fx.Node, _: bool) -> fx.Node:
    """What it is given; values and shapes stay."""
    return node.all_input_nodes[0]


RULE = Rule("remove_identities", "normalise", find, replace)
