"""A tensor that is unbound into a list becomes one selection for each part.

before: unbind(x, dim) -> q, k, v                                   (attention: the three parts of one projection)
after:  q = select(x, dim, 0), k = select(x, dim, 1), v = select(x, dim, 2)

A selection is one gather with a constant index. A list is a split into slices, each followed by a squeeze, and with a
dynamic batch TensorRT computes the size of every slice at run time, in two dozen layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.kinds import dim_of, is_getitem
from mlpdeploy.graph.rule import Refused, Rule

aten = torch.ops.aten


def find(editor: Editor, node: fx.Node) -> bool | Refused | None:
    """Whether it is an unbinding of which only single parts are read."""
    if node.target is not aten.unbind.int:
        return None
    return all(map(is_getitem, node.users)) or Refused("its parts are used as a list")


def replace(editor: Editor, node: fx.Node, _: bool) -> None:
    """A selection for each part, where it is taken out of the list."""
    count, dim = len(node.meta["val"]), dim_of(node)
    for user in list(node.users):
        index: Any = user.args[1]
        with editor.before(user):
            part = editor.call(aten.select.int, (node.args[0], dim, index % count), origin=node)
        user.replace_all_uses_with(part)
        editor.graph.erase_node(user)


RULE = Rule("pick_parts", "normalise", find, replace, after=("resolve_shapes",))
