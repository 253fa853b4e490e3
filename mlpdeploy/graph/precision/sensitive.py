"""Where FP16 and BF16 know a value too badly although it is in range: an angle, a place on a grid, an index.

They know a value to a part of it, and most operations hand such a relative error on as it is. But of an angle of 200
radians that is off by one part in 4000 the sine is another number; a place on a grid of 64 nodes that is off by one
part in 4000 lies elsewhere in its cell; and what becomes an integer, or is cut at one, may become the next one. Neural
fields do the first two with the coordinates that they are given, tables and buckets the third.
"""

from __future__ import annotations

import math

import torch
from torch import fx

from mlpdeploy.graph.editor import weight
from mlpdeploy.graph.kinds import (
    COMPARISONS,
    MOVES,
    arguments,
    is_pointwise,
    is_real,
    is_tensor,
    is_view,
    packet,
)
from mlpdeploy.graph.operations import PRODUCTS
from mlpdeploy.graph.precision.ranges import Peaks
from mlpdeploy.graph.precision.reach import SUMS

aten = torch.ops.aten

PERIODIC = {aten.sin, aten.cos, aten.tan}
SAMPLERS = {aten.grid_sampler, aten.grid_sampler_2d, aten.grid_sampler_3d}
AFFINE = {aten.add, aten.sub, aten.mul, aten.div, aten.neg, aten.rsub}
STEPS = {aten.floor, aten.ceil, aten.round, aten.trunc, aten.frac, aten.floor_divide, aten.remainder, aten.fmod}
"""Operations whose result jumps: the next integer, what is left of a division."""

RANKS = {aten.argmax, aten.argmin, aten.argsort, aten.topk, aten.sort, aten.max, aten.min, aten.median, aten.kthvalue}
"""Operations that say in integers which value comes first."""

FACTORIES = {
    aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like,
    aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty,
}  # fmt: skip
"""Operations that take the shape of a tensor, not its values."""

TURN = 2 * math.pi
"""Angles up to this are left in low precision: FP16 knows them to 1/650."""


def sensitive(module: fx.GraphModule, peaks: Peaks) -> dict[str, str]:
    """Why each node that must be computed in FP32 must, by node name; `peaks` are what the nodes reach."""
    reasons: dict[str, str] = {}
    for node in module.graph.nodes:
        if (asked := _asked(module, node, peaks)) is None:
            continue
        what, values = asked
        reasons.setdefault(node.name, f"reads {what}")
        for source in (source for value in values for source in _sources(value)):
            reasons.setdefault(source.name, f"computes {what}")
        for rest in _rests(node, values) if packet(node) in STEPS or _is_whole(node) else ():
            reasons.setdefault(rest.name, f"reads {what}")
    return reasons


def _asked(module: fx.GraphModule, node: fx.Node, peaks: Peaks) -> tuple[str, list[fx.Node]] | None:
    """What an operation must know better than others, in words, and the operands that are it; None for others."""
    kind, operands = packet(node), node.all_input_nodes
    if kind in PERIODIC:
        peak = peaks.of(operands[0])
        return (f"an angle of {peak:.3g} radians", operands) if peak > TURN else None
    if kind in SAMPLERS:
        return "places on a grid", operands[1:2]
    if kind is None or not any(map(is_real, operands)):
        return None
    if kind in COMPARISONS:
        return None if _of_sign(module, node) else ("numbers that are compared", operands)
    if kind in RANKS:
        return ("numbers that are ranked", operands[:1]) if any(map(_is_whole, (node, *node.users))) else None
    steps = kind in STEPS or (kind is aten.div and node.kwargs.get("rounding_mode") is not None)
    whole = _is_whole(node) and kind not in FACTORIES
    return ("numbers that become integers", operands) if steps or whole else None


def _is_whole(node: fx.Node) -> bool:
    """Whether a node's value is one tensor of integers."""
    kept = node.meta["val"].dtype if is_tensor(node) else None
    return kept is not None and not kept.is_floating_point and not kept.is_complex and kept is not torch.bool


def _of_sign(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a comparison asks for the sign of one number, which every precision knows."""
    numbers = [weight(module, other) if isinstance(other, fx.Node) else other for other in node.args[:2]]
    return any(number is not None and not torch.as_tensor(number).any() for number in numbers)


def _sources(value: fx.Node) -> list[fx.Node]:
    """The nodes that compute `value`: back through one projection and what scales, shifts or moves its operands."""
    found: dict[fx.Node, None] = {}
    pending, seen = [(value, False)], set()
    while pending:
        node, projected = pending.pop()
        numbers = is_real(node) or isinstance(node.meta.get("val"), list | tuple)
        if (node, projected) in seen or node.op != "call_function" or not numbers or _is_short(node):
            continue
        seen.add((node, projected))
        if not projected or packet(node) in AFFINE or node.target in MOVES or is_view(node):
            found[node] = None
            pending += [(operand, projected or packet(node) in PRODUCTS) for operand in node.all_input_nodes]
    return list(found)


def _is_short(node: fx.Node) -> bool:
    """Whether a node is filled with one number that every precision knows."""
    if packet(node) not in FACTORIES:
        return False
    number = arguments(node).get("fill_value", 0)
    return isinstance(number, float | int) and float(torch.tensor(number, dtype=torch.bfloat16)) == number


def _rests(step: fx.Node, values: list[fx.Node]) -> list[fx.Node]:
    """The sums of a step and the number that it was made of: x - floor(x)."""
    made = {*values, *(source for value in values for source in _sources(value))}
    found, pending, seen = [], [step], {step}
    while pending:
        for user in pending.pop().users:
            if packet(user) in SUMS and not made.isdisjoint(user.all_input_nodes):
                found.append(user)
            elif user not in seen and (is_view(user) or (is_pointwise(user) and len(user.all_input_nodes) == 1)):
                seen.add(user)
                pending.append(user)
    return found
