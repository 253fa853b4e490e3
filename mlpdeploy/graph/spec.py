"""What a graph may contain after each phase; checked, so that the next phase can rely on it."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx

aten = torch.ops.aten

GONE = {"remove_identities": {aten.dropout.default, aten.clone.default, aten.detach.default, aten.alias.default}}
"""Operations that no graph holds once a rule has run."""


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
