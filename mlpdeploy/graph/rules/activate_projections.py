"""GELU behind a linear or a product from the left becomes the epilogue of our operation, of which it is a simple case.

before: `b t c` -> linear over c -> gelu                                                              (channel MLPs)
before: `b t c` -> W @ x -> + one number for each row of W -> gelu                                      (token MLPs)
before: `b c h w` -> conv2d with kernel 1x1 -> gelu                                           (channel MLPs over maps)
after:  segment_grouped_projection_epilogue(bias, gelu) with one segment, from `(b t) 1 1 c`, or from `b 1 1 t c`;
        of a map from `(b h w) 1 1 c`, as it lies where its channels are last in memory

Compilers for GPUs call a library for the product and launch GELU behind it: a pass over the widest activations of the
network. Our kernel activates before it writes. Which of the two is faster is measured where an engine is built; the
rule is for engines that carry the kernel. Only what nothing else reads is fused with what follows it, and only GELU
that is a launch by itself: what norms, sums and other steps of a compiler's own kernels read, they compute in passing.
"""

from __future__ import annotations

import math
import operator
from dataclasses import replace as _replaced

import torch
from torch import fx

from mlpdeploy.graph.custom_ops import WITH_EPILOGUE
from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.kinds import PICKS, SPLITS, gelu_of, packet, shape_of
from mlpdeploy.graph.matching.products import OTHERS, Product, product, refusal
from mlpdeploy.graph.operations import PRODUCTS
from mlpdeploy.graph.rule import Refused, Rule

aten = torch.ops.aten

_VIEWS = (
    SPLITS
    | PICKS
    | {aten.reshape.default, aten.permute.default, aten.transpose.int, aten.slice.Tensor, operator.getitem}
)


def find(editor: Editor, node: fx.Node) -> Product | Refused | None:
    """The product that an activation reads."""
    if node.target is not aten.gelu.default and packet(node) not in OTHERS:
        return None
    steps = [node.all_input_nodes[0]]
    while steps[-1].target is aten.reshape.default:
        steps.append(steps[-1].all_input_nodes[0])
    found = product(editor, steps[-1])
    if found is None:
        return None
    if found.node is not steps[-1]:
        steps.append(found.node)
    reason = _refusal(editor, node, found, steps)
    return found if reason is None else Refused(reason)


def replace(editor: Editor, node: fx.Node, found: Product) -> fx.Node:
    """The operation, between the shapes that it takes and gives and those of the network."""
    rows = _of_rows(editor, found) if found.map else found
    leading, last = shape_of(rows.x)[: rows.dim], shape_of(rows.x)[rows.dim :]
    stored = editor.reshape(rows.x, [math.prod(leading), 1, 1, *last], origin=found.node)
    constant, bias = weight(editor.module, found.bias), None
    if constant is not None:
        column = constant.reshape(1, 1, -1, *[1] * found.left)
        bias = editor.constant(column, f"{found.bias.target}_epilogue", origin=found.node)
    arguments = (stored, rows.matrix, 1, bias, gelu_of(node), None, None)
    result = editor.call(WITH_EPILOGUE, arguments, origin=node)
    if found.map:
        result = editor.reshape(result, [*leading, shape_of(found.node)[1]], origin=node)
        batch, *places, channels = range(len(shape_of(result)))
        result = editor.permute(result, [batch, channels, *places], origin=node)
    return editor.reshape(result, shape_of(node), origin=node)


def _of_rows(editor: Editor, found: Product) -> Product:
    """A product of a map as a linear, of the map whose channels are last."""
    batch, channels, *places = range(len(shape_of(found.x)))
    x = editor.permute(found.x, [batch, *places, channels], origin=found.node)
    kernel = weight(editor.module, found.matrix)
    assert kernel is not None  # else the product was refused
    matrix = editor.constant(kernel.flatten(1), f"{found.matrix.target}_matrix", origin=found.node)
    return _replaced(found, x=x, matrix=matrix, map=False)


def _refusal(editor: Editor, node: fx.Node, found: Product, steps: list[fx.Node]) -> str | None:
    """Why the kernel cannot take the product with what follows it."""
    if gelu_of(node) is None:
        return f"its activation is {packet(node).__name__}, and the kernel computes GELU"
    if any(len(step.users) > 1 for step in steps):
        return "what is before GELU is read elsewhere as well"
    if (reason := refusal(editor, found, node)) is not None:
        return reason
    return None if _is_stored(node) else "what reads its GELU is computed with it"


def _is_stored(node: fx.Node) -> bool:
    """Whether a library, or whoever called, reads a value, or a part of it: then it lies in memory as it is."""
    return any(
        reader.op == "output" or packet(reader) in PRODUCTS or (reader.target in _VIEWS and _is_stored(reader))
        for reader in node.users
    )


RULE = Rule("activate_projections", "fusion", find, replace, after=("fuse_token_mlps",), for_kernel=True)
