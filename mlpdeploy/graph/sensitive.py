"""Where FP16 and BF16 know a value too badly although it is in range: the angle of a sine, a place on a grid.

They know a value to a part of it, and most operations hand such a relative error on as it is. But of an angle of 200
radians that is off by one part in 4000 the sine is another number; and a place on a grid of 64 nodes that is off by
one part in 4000 lies elsewhere in its cell. Neural fields do both with the coordinates that they are given.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping

import torch
from torch import fx

from mlpdeploy.graph.kinds import LISTS, is_pointwise, is_tensor

aten = torch.ops.aten

PERIODIC = {aten.sin.default, aten.cos.default}
SAMPLERS = {aten.grid_sampler.default, aten.grid_sampler_2d.default, aten.grid_sampler_3d.default}
PROJECTIONS = {aten.linear.default, aten.matmul.default, aten.mm.default, aten.addmm.default, aten.bmm.default}
AFFINE = {
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.neg.default, aten.rsub.Scalar,
    aten.mul.Scalar, aten.add.Scalar,
}  # fmt: skip
MOVES = LISTS | {aten.cat.default, aten.stack.default, aten.index_select.default, operator.getitem}

TURN = 2 * math.pi
"""Angles up to this are left in low precision: FP16 knows them to 1/650."""


def asks_for_more(graph: fx.Graph) -> bool:
    """Whether a graph has such operations."""
    return any(node.target in PERIODIC | SAMPLERS for node in graph.nodes)


def sensitive(graph: fx.Graph, peaks: Mapping[str, float]) -> dict[str, str]:
    """Why each node that must be computed in FP32 must, by node name; `peaks` are the nodes' largest magnitudes."""
    reasons: dict[str, str] = {}
    for node in graph.nodes:
        if node.target in PERIODIC:
            angle = node.args[0]
            peak = peaks.get(angle.name, 0.0)
            if peak <= TURN:
                continue
            what = f"an angle of {peak:.3g} radians"
        elif node.target in SAMPLERS:
            angle, what = node.args[1], "places on a grid"
        else:
            continue
        reasons.setdefault(node.name, f"reads {what}")
        for source in _sources(angle):
            reasons.setdefault(source.name, f"computes {what}")
    return reasons


def _sources(value: fx.Node) -> list[fx.Node]:
    """The nodes that compute `value`: back through one projection and what scales, shifts or moves its operands."""
    found: dict[fx.Node, None] = {}
    pending, seen = [(value, False)], set()
    while pending:
        node, projected = pending.pop()
        if (node, projected) in seen or node.op != "call_function":
            continue
        seen.add((node, projected))
        projects = node.target in PROJECTIONS and not projected
        computes = node.target in AFFINE if projected else is_pointwise(node)
        if projects or computes or node.target in MOVES or _is_view(node):
            found[node] = None
            pending += [(operand, projected or projects) for operand in node.all_input_nodes]
    return list(found)


def _is_view(node: fx.Node) -> bool:
    """Whether a node shows elements of its first operand in another shape or order."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not is_tensor(node) or not target._schema.arguments:
        return False
    alias = target._schema.arguments[0].alias_info
    return alias is not None and not alias.is_write
