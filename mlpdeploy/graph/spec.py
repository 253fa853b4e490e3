"""What a graph may contain after each phase; checked, so that the next phase can rely on it."""

from __future__ import annotations

import torch
from torch import fx

aten = torch.ops.aten

GONE = {
    "normalise": {aten.dropout.default, aten.clone.default, aten.detach.default, aten.alias.default},
    "layout": set(),
    "algebra": set(),
}
"""Operations that no graph holds after a phase."""


def check(module: fx.GraphModule, phase: str) -> None:
    """Raise AssertionError, naming the node, where `module` breaks what holds after `phase`."""
    module.graph.lint()
    for node in module.graph.nodes:
        if node.op == "output":
            continue
        assert node.op in ("placeholder", "get_attr", "call_function"), f"{node.name} is a {node.op} after {phase}"
        assert "val" in node.meta, f"{node.name} has no shape after {phase}"
        assert node.target not in GONE[phase], f"{node.name} is left after {phase}"
        folded = node.op == "call_function" and node.all_input_nodes
        constant = folded and all(argument.op == "get_attr" for argument in node.all_input_nodes)
        assert not constant, f"{node.name} depends on weights alone after {phase}"
