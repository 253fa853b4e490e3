"""What each phase promises to the next about a graph; checked after every phase, so that the next can rely on it.

After each: shapes are known, nothing depends on weights alone, and what a rule makes other operations of is gone.
After layout: axes are permuted by `permute` alone, and no `permute` reads another one.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx

from mlpdeploy.graph.kinds import is_real
from mlpdeploy.graph.rules import LAYOUT

aten = torch.ops.aten

GONE = {
    "remove_identities": {aten.dropout.default, aten.clone.default, aten.detach.default, aten.alias.default},
    "resolve_shapes": {aten.view_as.default, aten.reshape_as.default, aten.expand_as.default, aten.type_as.default},
}
"""Operations that no graph holds once a rule has run."""

PERMUTATIONS = {
    aten.transpose.int, aten.t.default, aten.movedim.int, aten.movedim.intlist, aten.swapaxes.default,
}  # fmt: skip
"""Other spellings of `permute`, which no real tensor has behind the layout pass."""


def check(module: fx.GraphModule, phase: str, ran: Collection[str]) -> None:
    """Raise AssertionError, naming the node, where `module` breaks what holds after `phase` and the rules `ran`."""
    module.graph.lint()
    gone = set().union(*(GONE.get(rule, set()) for rule in ran))
    for node in module.graph.nodes:
        if node.op == "output":
            continue
        assert node.op in ("placeholder", "get_attr", "call_function"), f"{node.name} is a {node.op} after {phase}"
        assert "val" in node.meta, f"{node.name} has no shape after {phase}"
        assert node.target not in gone, f"{node.name} is left after {phase}"
        operands = node.all_input_nodes if node.op == "call_function" else []
        constant = operands and all(operand.op == "get_attr" for operand in operands)
        assert not constant, f"{node.name} depends on weights alone after {phase}"
        if phase == "layout" and LAYOUT in ran and is_real(node):
            assert node.target not in PERMUTATIONS, f"{node.name} is left after {phase}"
            moved = node.target is aten.permute.default and operands[0].target is aten.permute.default
            assert not moved, f"{node.name} permutes what is permuted after {phase}"
