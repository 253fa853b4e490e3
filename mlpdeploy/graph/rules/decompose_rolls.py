"""A roll along several dimensions becomes one roll along each.

before: roll(x, (-3, -3), (1, 2))                                   (Swin: a grid displaced along height and width)
after:  roll(roll(x, -3, 1), -3, 2)

Rules that read a roll as a rearrangement of one dimension (`gather_shifts`) then see every one.
"""

from __future__ import annotations

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.kinds import arguments
from mlpdeploy.graph.rule import Rule

aten = torch.ops.aten


def find(editor: Editor, node: fx.Node) -> list[tuple[int, int]] | None:
    """Shifts and dimensions of a roll along two dimensions or more; one of the flattened tensor has none."""
    if node.target is not aten.roll.default:
        return None
    given = arguments(node)
    return list(zip(given["shifts"], given["dims"], strict=True)) if len(given["dims"]) > 1 else None


def replace(editor: Editor, node: fx.Node, rolls: list[tuple[int, int]]) -> fx.Node:
    """One roll after the other."""
    result = node.all_input_nodes[0]
    for shift, dim in rolls:
        result = editor.call(aten.roll.default, (result, [shift], [dim]), origin=node)
    return result


RULE = Rule("decompose_rolls", "normalise", find, replace)
