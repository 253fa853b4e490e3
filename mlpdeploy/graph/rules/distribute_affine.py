"""A constant scale and shift that several projections read is applied in front of each, where it is part of them.

before: y = x * alpha + beta -> conv2d(y, V), conv2d(gather(y), W)        (BatchNorm in front of mixing branches)
after:  conv2d(x * alpha + beta, V), conv2d(gather(x) * alpha + beta, W)

`fold_affine` then puts every copy into the weights behind it, so that no pass over memory is left. Refused where any
reader could not take it in: then the scale and shift would have to be computed all the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor, is_linear_of_constants, weight
from mlpdeploy.graph.kinds import shape_of
from mlpdeploy.graph.matching.affine import Affine, affine
from mlpdeploy.graph.rule import Refused, Rule

aten = torch.ops.aten


def find(editor: Editor, node: fx.Node) -> tuple[Affine, list[fx.Node]] | Refused | None:
    """Such a scale and shift, and all of its readers."""
    link = affine(editor.module, node) if len(node.users) > 1 else None
    if link is None:
        return None
    readers = _readers(node, link)
    takers = [reader for reader in readers if _takes(editor, reader, link)]
    if len(takers) == len(readers):
        return link, readers
    return Refused("a reader is no projection that can take the scale and shift in") if takers else None


def replace(editor: Editor, node: fx.Node, found: tuple[Affine, list[fx.Node]]) -> None:
    """Copy it to each reader."""
    link, readers = found
    node.replace_all_uses_with(link.source)
    for reader in readers:
        source = next(operand for operand in reader.all_input_nodes if operand.op != "get_attr")
        operands = [operand if operand is not link.source else source for operand in node.args]
        with editor.before(reader):
            copy = editor.call(node.target, operands, dict(node.kwargs), origin=node)
        reader.replace_input_with(source, copy)


def _readers(node: fx.Node, link: Affine) -> list[fx.Node]:
    """What reads `node`, directly or through gathers along dimensions that the scale and shift do not vary along."""
    found: list[fx.Node] = []
    for user in node.users:
        dims = set(range(len(shape_of(node))))
        if user.target is aten.index_select.default and link.varies(*(dims - {user.args[1]})):
            found += _readers(user, link)
        else:
            found.append(user)
    return found


def _takes(editor: Editor, reader: fx.Node, link: Affine) -> bool:
    """Whether `fold_affine` can put the scale and shift into `reader`, which may read them only as its activation."""
    if is_linear_of_constants(reader):
        return link.varies(-1)
    if len(reader.users) == 1 and affine(editor.module, reader) is not None:
        return _takes(editor, next(iter(reader.users)), link)
    if reader.target is not aten.conv2d.default or weight(editor.module, reader.args[1]) is None:
        return False
    padding: Any = reader.args[4] if len(reader.args) > 4 else [0, 0]
    return link.varies(1) and not (any(padding) and link.shift is not None)


RULE = Rule("distribute_affine", "algebra", find, replace, backwards=True)  # a chain from its end
