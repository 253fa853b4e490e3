"""An MLP over tokens becomes one operation: two products from the left, GELU between them, and a residual behind.

before: r + (W2 @ gelu(W1 @ x + one number for each row of W1) + one for each row of W2)     (MLP-Mixer, over `b t c`)
after:  token_mlp(x, W1, bias, gelu, W2, bias, r)

Step by step the hidden activations are written and read, with GELU in a pass of its own or at the end of the first
product. For a tile of channels all tokens and a step of the hidden ones fit a multiprocessor, so a kernel of ours reads
x once and writes the result alone. Which of the two is faster is measured where an engine is built; the rule is for
engines that carry the kernel. Biases and the residual may be absent; a residual is taken in where nothing else reads
what is added to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mlpdeploy import kernels
from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.kinds import gelu_of, packet, shape_of
from mlpdeploy.graph.matching.products import NO_MATRIX, OTHERS, Product, is_bias, product, refusal
from mlpdeploy.graph.rule import Refused, Rule
from mlpdeploy.graph.token_mlp import TOKEN_MLP

aten = torch.ops.aten


@dataclass(frozen=True)
class _Mlp:
    """Both products, what is between them, and what is added behind them; `end` is the last operation."""

    up: Product
    between: tuple[fx.Node, ...]
    activation: fx.Node
    down: Product
    bias: fx.Node | None
    residual: fx.Node | None
    end: fx.Node


def find(editor: Editor, node: fx.Node) -> _Mlp | Refused | None:
    """The MLP that an operation ends."""
    found = next((one for inner in _within(node) if (one := _mlp(editor, inner)) is not None), None)
    if found is None or found.end is not node:
        return None
    reason = _refusal(editor, found)
    return found if reason is None else Refused(reason)


def replace(editor: Editor, node: fx.Node, found: _Mlp) -> fx.Node:
    """The operation, between the shapes that it takes and gives and those of the network."""
    *leading, tokens, channels = shape_of(found.up.x)
    outputs = shape_of(node)[-2]
    x = editor.reshape(found.up.x, [math.prod(leading), tokens, channels], origin=found.up.node)
    residual = found.residual
    if residual is not None:
        residual = editor.reshape(residual, [math.prod(leading), outputs, channels], origin=node)
    biases = [_column(editor, one, node) for one in (found.up.bias, found.bias)]
    gelu = gelu_of(found.activation)
    arguments = (x, found.up.matrix, biases[0], gelu, found.down.matrix, biases[1], residual)
    return editor.reshape(editor.call(TOKEN_MLP, arguments, origin=found.down.node), shape_of(node), origin=node)


def _within(node: fx.Node) -> list[fx.Node]:
    """What can be the second product of an MLP that `node` ends: itself, or below one or two additions."""
    found, sums = [node], [node]
    for _ in range(2):
        sums = [one for total in sums if total.target is aten.add.Tensor for one in total.all_input_nodes]
        found += sums
    return [one for one in found if one.target is aten.matmul.default]


def _mlp(editor: Editor, second: fx.Node) -> _Mlp | None:
    """The MLP whose second product this is."""
    down = product(editor, second)
    if down is None:
        return None
    *behind, activation = _stacked(down.x)
    if activation.target is not aten.gelu.default and packet(activation) not in OTHERS:
        return None
    before = _stacked(activation.all_input_nodes[0])
    up = product(editor, before[-1])
    if up is None or not up.left:
        return None
    between = (up.node, *before, activation, *behind)
    end, bias, residual = second, None, None
    if (found := _added(end)) is not None and is_bias(editor, down, found[1]):
        end, bias = found
    if (found := _added(end)) is not None and _is_like(found[1], end):
        end, residual = found
    return _Mlp(up, between, activation, down, bias, residual, end)


def _stacked(node: fx.Node) -> list[fx.Node]:
    """A value, and where it only stacks matrices otherwise, what it is of."""
    found = [node]
    while (last := found[-1]).target is aten.reshape.default:
        inner: fx.Node = last.all_input_nodes[0]
        if shape_of(inner)[-2:] != shape_of(last)[-2:]:
            break
        found.append(inner)
    return found


def _added(node: fx.Node) -> tuple[fx.Node, Any] | None:
    """The addition that alone reads a value, and what it adds."""
    total = next(iter(node.users)) if len(node.users) == 1 else None
    if total is None or total.target is not aten.add.Tensor or total.kwargs or total.args == (node, node):
        return None
    return total, next(one for one in total.args if one is not node)


def _is_like(value: Any, node: fx.Node) -> bool:
    """Whether a value is a tensor of the shape and dtype of a node's."""
    if not isinstance(value, fx.Node) or not isinstance(value.meta["val"], torch.Tensor):
        return False
    return shape_of(value) == shape_of(node) and value.meta["val"].dtype == node.meta["val"].dtype


def _refusal(editor: Editor, found: _Mlp) -> str | None:
    """Why the kernel cannot take an MLP."""
    if gelu_of(found.activation) is None:
        return f"its activation is {packet(found.activation).__name__}, and the kernel computes GELU"
    if any(len(one.users) > 1 for one in found.between):
        return "its hidden activations are read elsewhere as well"
    if (reason := refusal(editor, found.up, found.activation)) is not None:
        return reason
    matrix = weight(editor.module, found.down.matrix)
    if matrix is None or matrix.dim() != 2:
        return NO_MATRIX
    return _too_large(int(shape_of(found.up.x)[-2]), matrix.shape[0])


def _too_large(tokens: int, outputs: int) -> str | None:
    """Why no GPU has a block for so many tokens."""
    needed = kernels.load("token_mlp.problem").least_shared(tokens, outputs)
    most = max(kernels.load("common.configurations").SHARED.values())
    if needed <= most:
        return None
    return f"{max(tokens, outputs)} tokens need {needed >> 10} KiB of shared memory, of which a block has {most >> 10}"


def _column(editor: Editor, bias: Any, origin: fx.Node) -> fx.Node | None:
    """A constant with one number for each row, as a column; None where there is none."""
    constant = weight(editor.module, bias)
    if constant is None or constant.dim() == 2:
        return bias if constant is not None else None
    return editor.constant(constant.reshape(-1, 1), f"{bias.target}_column", origin=origin)


RULE = Rule("fuse_token_mlps", "fusion", find, replace, default=False, for_kernel=True)
