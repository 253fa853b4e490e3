"""Bags of embeddings that all hold as many become a lookup and a mean, a sum or a maximum.

before: embedding_bag(T, ids flattened, offsets 0, n, 2n, ...)                              (nn.EmbeddingBag of `b n`)
after:  mean over n of embedding(T, ids), `b n` to `b n d` to `b d`

Exporters write bags as a loop over offsets, which few engines take.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor
from mlpdeploy.graph.kinds import arguments, shape_of
from mlpdeploy.graph.rule import Refused, Rule

aten = torch.ops.aten

REDUCTIONS = (aten.sum.dim_IntList, aten.mean.dim, aten.amax.default)
"""By the number that stands for the `mode`."""


def find(editor: Editor, node: fx.Node) -> int | Refused | None:
    """How many ids each bag holds."""
    if node.target is not aten.embedding_bag.padding_idx:
        return None
    given, offsets = arguments(node), node.args[2]
    assert isinstance(offsets, fx.Node)
    if offsets.target is not aten.arange.start_step or offsets.args[0] != 0:
        return Refused("its bags are told by offsets that are not equally far apart")
    if given["per_sample_weights"] is not None or given["padding_idx"] is not None or given["include_last_offset"]:
        return Refused("its bags are weighted, padded or closed by an offset")
    size: Any = offsets.args[2]
    alone = all(user.args[1] == 0 or not user.users for user in node.users)
    return size if alone else Refused("its offsets and sizes are used as well")


def replace(editor: Editor, node: fx.Node, size: int) -> None:
    """The lookup and its reduction, where the first result is taken."""
    table, ids, reduce = node.args[0], node.args[1], REDUCTIONS[arguments(node)["mode"]]
    taken = next(user for user in node.users if user.args[1] == 0)
    assert isinstance(ids, fx.Node)
    bags = editor.reshape(ids, [shape_of(taken)[0], size], origin=node)
    found = editor.call(aten.embedding.default, (table, bags), origin=node)
    taken.replace_all_uses_with(editor.call(reduce, (found, [1], False), origin=node))


RULE = Rule("decompose_bags", "normalise", find, replace)
