"""A tensor that is unbound into a list becomes one selection for each part.

before: unbind(x, dim) -> q, k, v                                   (attention: the three parts of one projection)
after:  q = select(x, dim, 0), k = select(x, dim, 1), v = select(x, dim, 2)

A selection is one gather with a constant index. A list is a split into slices, each followed by a squeeze, and with a
dynamic batch TensorRT computes the size of every slice at run time, in two dozen layers.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.kinds import dim_of
from mlpdeploy.graph.rule import Log, Rule

aten = torch.ops.aten


def rewrite(editor: Editor, log: Log) -> None:
    """Replace every unbinding of which only single parts are read."""
    for node in list(editor.graph.nodes):
        if node.target is not aten.unbind.int:
            continue
        if any(user.target is not operator.getitem for user in node.users):
            log.refused(node, "its parts are used as a list")
            continue
        _pick(editor, node)
        log.fired()


def _pick(editor: Editor, node: fx.Node) -> None:
    count, dim = len(node.meta["val"]), dim_of(node)
    for user in list(node.users):
        index: Any = user.args[1]
        with editor.before(user):
            part = editor.call(aten.select.int, (node.args[0], dim, index % count), origin=node)
        user.replace_all_uses_with(part)
        editor.graph.erase_node(user)
    editor.graph.erase_node(node)


RULE = Rule("pick_parts", phase="normalise", rewrite=rewrite)
