"""A roll along several dimensions becomes one roll along each.

before: roll(x, (-3, -3), (1, 2))                                   (Swin: a grid displaced along height and width)
after:  roll(roll(x, -3, 1), -3, 2)

Rules that read a roll as a rearrangement of one dimension (`gather_shifts`) then see every one.
"""

from __future__ import annotations

from typing import Any

import torch

from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.rule import Log, Rule

aten = torch.ops.aten


def rewrite(editor: Editor, log: Log) -> None:
    """Replace every roll along two dimensions or more; one of the flattened tensor has none and is left."""
    for node in list(editor.graph.nodes):
        if node.target is not aten.roll.default:
            continue
        arguments: Any = (*node.args, [])[:3]
        source, shifts, dims = arguments
        if len(dims) < 2:
            continue
        with editor.before(node):
            for shift, dim in zip(shifts, dims, strict=True):
                source = editor.call(aten.roll.default, (source, [shift], [dim]), origin=node)
        node.replace_all_uses_with(source)
        editor.graph.erase_node(node)
        log.fired()


RULE = Rule("decompose_rolls", phase="normalise", rewrite=rewrite)
