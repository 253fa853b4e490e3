"""Tables looked up one by one, each by a column of the same ids, become one table.

before: cat(embedding(T_1, ids[:, i]), ..., embedding(T_n, ids[:, k]))       `b` n times to `b (n d)`
after:  embedding(T, ids[:, (i, ..., k)] + rows)                             `b n` to `b n d`, which is `b (n d)`

T is the tables one below the other, and rows says where each begins: a column that was an index into its own table is
one into T. Networks over categorical fields (FinalMLP) take one gather where they took two for each field.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.kinds import arguments, dim_of, shape_of
from mlpdeploy.graph.rule import Refused, Rule

aten = torch.ops.aten


def find(editor: Editor, node: fx.Node) -> list[fx.Node] | Refused | None:
    """The lookups that a concatenation joins."""
    parts: Any = node.args[0] if node.target is aten.cat.default else []
    if len(parts) < 2 or not all(_is_lookup(editor, part) for part in parts):
        return None
    reason = _refusal(node, parts)
    return list(parts) if reason is None else Refused(reason)


def _is_lookup(editor: Editor, node: fx.Node) -> bool:
    """Whether `node` is rows of a constant table, one for each id of one column of ids (b, fields)."""
    if node.target is not aten.embedding.default or weight(editor.module, node.args[0]) is None:
        return False
    column = node.args[1]
    if not isinstance(column, fx.Node) or column.target is not aten.select.int:
        return False
    return len(shape_of(column)) == 1 and dim_of(column) == 1


def _refusal(node: fx.Node, parts: list[fx.Node]) -> str | None:
    if len({part.args[1].args[0] for part in parts}) > 1:  # type: ignore[union-attr]
        return "its tables are indexed by different ids"
    if len({(shape_of(part)[-1], part.meta["val"].dtype) for part in parts}) > 1:
        return "its tables differ in width or dtype"
    return None if dim_of(node) == 1 else "its rows are concatenated along the batch"


def replace(editor: Editor, node: fx.Node, parts: list[fx.Node]) -> fx.Node:
    """One lookup in one table."""
    ids = parts[0].args[1].args[0]  # type: ignore[union-attr]
    fields = int(shape_of(ids)[1])  # type: ignore[arg-type]
    columns = [int(arguments(part.args[1])["index"]) % fields for part in parts]  # type: ignore[arg-type]
    tables = [weight(editor.module, part.args[0]) for part in parts]
    rows = itertools.accumulate((len(table) for table in tables[:-1]), initial=0)  # type: ignore[arg-type]
    if columns != list(range(fields)):
        picked = editor.constant(torch.tensor(columns), "columns", origin=node)
        ids = editor.call(aten.index_select.default, (ids, 1, picked), origin=node)
    begins = editor.constant(torch.tensor(list(rows)), "rows", origin=node)
    shifted = editor.call(aten.add.Tensor, (ids, begins), origin=node)
    table = editor.constant(torch.cat(tables), "tables", origin=parts[0])  # type: ignore[arg-type]
    found = editor.call(aten.embedding.default, (table, shifted), origin=parts[0])
    return editor.reshape(found, shape_of(node), origin=node)


RULE = Rule("merge_embeddings", "algebra", find, replace)
