"""Operations that do nothing at inference go: dropout, clone, casts to the same dtype, whole slices, cat of one.

before: linear -> dropout(p, train=False) -> linear
after:  linear -> linear

An engine would drop them as well; the rules after this one would have to look through them.
"""

from __future__ import annotations

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.kinds import shape_of
from mlpdeploy.graph.rule import Log, Rule

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


def _is_identity(node: fx.Node) -> bool:
    if node.target in DROPOUTS:
        return bool(not node.args[2] or node.args[1] == 0)
    if node.target in CASTS:
        return bool(node.meta["val"].dtype == node.args[0].meta["val"].dtype)  # type: ignore[union-attr]
    if node.target is aten.slice.Tensor:
        return shape_of(node) == shape_of(node.args[0])  # type: ignore[arg-type]
    if node.target is aten.pad.default:
        return not any(node.args[1])  # type: ignore[arg-type]
    if node.target is aten.cat.default:
        return len(node.args[0]) == 1  # type: ignore[arg-type]
    return node.target in ALWAYS


def rewrite(editor: Editor, log: Log) -> None:
    """Remove each; values and shapes stay."""
    for node in list(editor.graph.nodes):
        if node.op == "call_function" and _is_identity(node):
            node.replace_all_uses_with(node.all_input_nodes[0])
            editor.graph.erase_node(node)
            log.fired()


RULE = Rule("remove_identities", phase="normalise", rewrite=rewrite)
