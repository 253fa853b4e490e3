"""What values cannot fall below, read from the operations that make them: |x| + 1 is 1 at least."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from mlpdeploy.graph.kinds import MOVES, arguments, is_view, packet

aten = torch.ops.aten

LOWEST = {
    aten.abs: 0.0, aten.relu: 0.0, aten.sigmoid: 0.0, aten.softmax: 0.0, aten.exp: 0.0, aten.square: 0.0,
    aten.sqrt: 0.0, aten.softplus: 0.0, aten.var: 0.0, aten.std: 0.0, aten.linalg_vector_norm: 0.0, aten.cosh: 1.0,
    aten.sin: -1.0, aten.cos: -1.0, aten.tanh: -1.0, aten.erf: -1.0,
}  # fmt: skip
"""Results of these, whatever they read."""

KEEPING = {aten.mean, aten.amax, aten.amin, aten.max_pool2d, aten.adaptive_avg_pool2d, aten.expand_as, aten.clone}
"""Operations whose results lie between the values that they read."""


def lower(node: Any) -> float:
    """A number that no value of `node` (a node or a number) is below; minus infinity where nothing is known."""
    if isinstance(node, float | int):
        return float(node)
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return -math.inf
    kind = packet(node)
    if kind in LOWEST:
        return LOWEST[kind]
    if kind in KEEPING or is_view(node):
        return lower(node.args[0])
    if node.target in MOVES:
        return min((lower(one) for one in node.all_input_nodes), default=-math.inf)
    if kind is aten.sum:
        return 0.0 if lower(node.args[0]) >= 0 else -math.inf
    if kind in {aten.clamp, aten.clamp_min}:
        return max(lower(node.args[0]), lower(arguments(node).get("min")))
    return _of_two(node, kind)


def _of_two(node: fx.Node, kind: Any) -> float:
    first, *rest = node.args
    second = rest[0] if rest else None
    if kind is aten.add and arguments(node)["alpha"] == 1:
        return lower(first) + lower(second)
    if kind is aten.mul and first is second:
        return 0.0
    if kind is aten.mul and min(lower(first), lower(second)) >= 0:
        return lower(first) * lower(second)
    if kind is aten.pow and isinstance(second, float | int) and second % 2 == 0 and second > 0:
        return 0.0
    return -math.inf
