"""A product with a constant matrix, from the right (a linear, also of a map) or the left, and what is added to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.kinds import convolution_arguments, is_pointwise_convolution, shape_of

aten = torch.ops.aten

OTHERS = {aten.relu, aten.silu, aten.tanh, aten.sigmoid, aten.leaky_relu, aten.hardswish, aten.elu, aten.mish}
"""Activations that no kernel of ours computes."""

_ROUNDED = {torch.float16, torch.bfloat16}
"""Numbers that a network rounds to between a product and GELU, where it has them itself."""

NO_MATRIX = "its weight is not one constant matrix"
NO_BIAS = "what is added to it is not a constant for each of its outputs"


@dataclass(frozen=True)
class Product:
    """A product of `x` and a constant `matrix` from the right (a linear) or the `left`, and what is added to it.

    Of a `map` it is a linear over the axis of channels, behind the batch: a convolution of one place, whose kernel is
    the matrix.
    """

    node: fx.Node
    x: fx.Node
    matrix: fx.Node
    left: bool
    bias: Any
    map: bool = False

    @property
    def dim(self) -> int:
        """The axis that it contracts and produces, from the end."""
        return 1 - len(shape_of(self.x)) if self.map else -2 if self.left else -1


def product(editor: Editor, node: fx.Node) -> Product | None:
    """The product that `node` is, or to which it adds something."""
    if node.target is aten.linear.default:
        return Product(node, node.args[0], node.args[1], False, _third(node))  # type: ignore[arg-type]
    if is_pointwise_convolution(node):
        x, kernel, bias, *_ = convolution_arguments(node)
        batched = len(shape_of(x)) == len(shape_of(kernel))
        return Product(node, x, kernel, False, bias, map=True) if batched else None
    if node.target is aten.matmul.default:
        matrix, x = node.args
        known = weight(editor.module, matrix) is not None and len(shape_of(x)) > 1  # type: ignore[arg-type]
        return Product(node, x, matrix, True, None) if known else None  # type: ignore[arg-type]
    if node.target is not aten.add.Tensor or node.kwargs:
        return None
    first, second = node.args
    for one, other in ((first, second), (second, first)):
        if isinstance(one, fx.Node) and one.target in (aten.linear.default, aten.matmul.default):
            found = product(editor, one)
            if found is not None and found.bias is None:
                return Product(one, found.x, found.matrix, found.left, other)
    return None


def _third(node: fx.Node) -> Any:
    return node.args[2] if len(node.args) > 2 else None


def refusal(editor: Editor, found: Product, activation: fx.Node) -> str | None:
    """Why a kernel cannot take the product with the bias and the GELU behind it."""
    if (dtype := activation.meta["val"].dtype) in _ROUNDED:
        return f"the network itself computes it in {str(dtype).removeprefix('torch.')}, and rounds it before GELU"
    matrix = weight(editor.module, found.matrix)
    if matrix is None or (matrix.dim() != 2 and not found.map):
        return NO_MATRIX
    if found.bias is not None and not _is_bias_of(editor, found):
        return NO_BIAS
    if not all(isinstance(size, int) for size in shape_of(found.x)[found.dim :]):
        return "its sizes depend on the batch"
    return None


def _is_bias_of(editor: Editor, found: Product) -> bool:
    """Whether the bias of a product is one; that of a convolution has no other shape."""
    return is_bias(editor, found, found.bias) if not found.map else weight(editor.module, found.bias) is not None


def is_bias(editor: Editor, found: Product, added: Any) -> bool:
    """Whether what is added is a constant with one number for each output, and does not widen the product."""
    constant, outputs = weight(editor.module, added), shape_of(found.node)[found.dim]
    if constant is None or constant.dim() > len(shape_of(found.node)) or constant.dim() < -found.dim:
        return False
    return bool(constant.shape[found.dim] == outputs == constant.numel())
