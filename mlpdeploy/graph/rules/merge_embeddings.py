"""Tables looked up one by one, each by a column of the same ids, become one table.

before: cat(embedding(T_1, ids[:, i]), ..., embedding(T_n, ids[:, k]))       `b` n times to `b (n d)`
after:  embedding(T, ids[:, (i, ..., k)] + rows)                             `b n` to `b n d`, which is `b (n d)`

T is the tables one below the other, and rows says where each begins: a column that was an index into its own table is
one into T. Networks over categorical fields (FinalMLP) take one gather where they took two for each field.
"""

from __future__ import annotations

import itertools

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.kinds import dim_of, shape_of
from mlpdeploy.graph.rule import Log, Rule

aten = torch.ops.aten


def rewrite(editor: Editor, log: Log) -> None:
    """Merge the tables of every concatenation of embeddings."""
    for node in list(editor.graph.nodes):
        parts = node.args[0] if node.target is aten.cat.default else []
        if len(parts) < 2 or not all(_is_lookup(editor, part) for part in parts):
            continue
        if reason := _refusal(node, parts):
            log.refused(node, reason)
        else:
            _merge(editor, node, parts)
            log.fired()


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


def _merge(editor: Editor, node: fx.Node, parts: list[fx.Node]) -> None:
    ids = parts[0].args[1].args[0]  # type: ignore[union-attr]
    fields = int(shape_of(ids)[1])  # type: ignore[arg-type]
    columns = [_index(part.args[1]) % fields for part in parts]  # type: ignore[arg-type]
    tables = [weight(editor.module, part.args[0]) for part in parts]
    rows = itertools.accumulate((len(table) for table in tables[:-1]), initial=0)  # type: ignore[arg-type]
    with editor.before(node):
        if columns != list(range(fields)):
            picked = editor.constant(torch.tensor(columns), "columns", origin=node)
            ids = editor.call(aten.index_select.default, (ids, 1, picked), origin=node)
        begins = editor.constant(torch.tensor(list(rows)), "rows", origin=node)
        shifted = editor.call(aten.add.Tensor, (ids, begins), origin=node)
        table = editor.constant(torch.cat(tables), "tables", origin=parts[0])  # type: ignore[arg-type]
        found = editor.call(aten.embedding.default, (table, shifted), origin=parts[0])
        merged = editor.reshape(found, shape_of(node), origin=node)
    node.replace_all_uses_with(merged)


def _index(column: fx.Node) -> int:
    """The `index` argument of select."""
    return int(column.args[2] if len(column.args) > 2 else column.kwargs["index"])  # type: ignore[arg-type]


RULE = Rule("merge_embeddings", phase="algebra", rewrite=rewrite)
