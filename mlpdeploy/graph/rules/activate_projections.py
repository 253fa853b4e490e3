"""GELU behind a linear or a product from the left becomes the epilogue of our operation, of which it is a simple case.

before: `b t c` -> linear over c -> gelu                                                              (channel MLPs)
before: `b t c` -> W @ x -> + one number for each row of W -> gelu                                      (token MLPs)
after:  segment_grouped_projection_epilogue(bias, gelu) with one segment, from `(b t) 1 1 c`, or from `b 1 1 t c`

Compilers for GPUs call a library for the product and launch GELU behind it: a pass over the widest activations of the
network. Our kernel activates before it writes. Which of the two is faster is measured where an engine is built; the
rule is for engines that carry the kernel. Only what nothing else reads is fused with what follows it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mlpdeploy.graph.custom_ops import WITH_EPILOGUE
from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.kinds import gelu_of, packet, shape_of
from mlpdeploy.graph.rule import Refused, Rule

aten = torch.ops.aten

OTHERS = {aten.relu, aten.silu, aten.tanh, aten.sigmoid, aten.leaky_relu, aten.hardswish, aten.elu, aten.mish}
"""Activations that the kernel does not compute."""

ROUNDED = {torch.float16, torch.bfloat16}
"""Numbers that a network rounds to between a product and GELU, where it has them itself."""


@dataclass(frozen=True)
class _Product:
    """A product of `x` and a constant `matrix` from the right (a linear) or the `left`, and what is added to it."""

    node: fx.Node
    x: fx.Node
    matrix: fx.Node
    left: bool
    bias: Any

    @property
    def dim(self) -> int:
        """The axis that it contracts and produces."""
        return -2 if self.left else -1


def find(editor: Editor, node: fx.Node) -> _Product | Refused | None:
    """The product that an activation reads."""
    if node.target is not aten.gelu.default and packet(node) not in OTHERS:
        return None
    steps = [node.all_input_nodes[0]]
    while steps[-1].target is aten.reshape.default:
        steps.append(steps[-1].all_input_nodes[0])
    product = _product(editor, steps[-1])
    if product is None:
        return None
    if product.node is not steps[-1]:
        steps.append(product.node)
    reason = _refusal(editor, node, product, steps)
    return product if reason is None else Refused(reason)


def replace(editor: Editor, node: fx.Node, found: _Product) -> fx.Node:
    """The operation, between the shapes that it takes and gives and those of the network."""
    shape = shape_of(found.x)
    leading, last = shape[: found.dim], shape[found.dim :]
    stored = editor.reshape(found.x, [math.prod(leading), 1, 1, *last], origin=found.node)
    constant, bias = weight(editor.module, found.bias), None
    if constant is not None:
        column = constant.reshape(1, 1, -1, *[1] * found.left)
        bias = editor.constant(column, f"{found.bias.target}_epilogue", origin=found.node)
    arguments = (stored, found.matrix, 1, bias, gelu_of(node), None, None)
    return editor.reshape(editor.call(WITH_EPILOGUE, arguments, origin=node), shape_of(node), origin=node)


def _product(editor: Editor, node: fx.Node) -> _Product | None:
    """The product that `node` is, or to which it adds something."""
    if node.target is aten.linear.default:
        return _Product(node, node.args[0], node.args[1], False, _third(node))  # type: ignore[arg-type]
    if node.target is aten.matmul.default:
        matrix, x = node.args
        known = weight(editor.module, matrix) is not None and len(shape_of(x)) > 1  # type: ignore[arg-type]
        return _Product(node, x, matrix, True, None) if known else None  # type: ignore[arg-type]
    if node.target is not aten.add.Tensor or node.kwargs:
        return None
    first, second = node.args
    for one, other in ((first, second), (second, first)):
        if isinstance(one, fx.Node) and one.target in (aten.linear.default, aten.matmul.default):
            product = _product(editor, one)
            if product is not None and product.bias is None:
                return _Product(one, product.x, product.matrix, product.left, other)
    return None


def _third(node: fx.Node) -> Any:
    return node.args[2] if len(node.args) > 2 else None


def _refusal(editor: Editor, node: fx.Node, found: _Product, steps: list[fx.Node]) -> str | None:
    """Why the kernel cannot take the product with what follows it."""
    if gelu_of(node) is None:
        return f"its activation is {packet(node).__name__}, and the kernel computes GELU"
    if any(len(step.users) > 1 for step in steps):
        return "what is before GELU is read elsewhere as well"
    if (dtype := node.meta["val"].dtype) in ROUNDED:
        return f"the network itself computes it in {str(dtype).removeprefix('torch.')}, and rounds it before GELU"
    matrix = weight(editor.module, found.matrix)
    if matrix is None or matrix.dim() != 2:
        return "its weight is not one constant matrix"
    if found.bias is not None and not _is_bias(editor, found, matrix.shape[0]):
        return "what is added to it is not a constant for each of its outputs"
    if not all(isinstance(size, int) for size in shape_of(found.x)[found.dim :]):
        return "its sizes depend on the batch"
    return None


def _is_bias(editor: Editor, found: _Product, outputs: int) -> bool:
    """Whether what is added is a constant with one number for each output, and does not widen the product."""
    constant = weight(editor.module, found.bias)
    if constant is None or constant.dim() > len(shape_of(found.node)) or constant.dim() < -found.dim:
        return False
    return constant.shape[found.dim] == outputs == constant.numel()


RULE = Rule("activate_projections", "fusion", find, replace, default=False, for_kernel=True)
