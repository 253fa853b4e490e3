"""Values too small for FP16, and differences that a low precision does not know: `x / x.std()`, `sqrt(E[x^2] - m^2)`.

FP16 ends at 6e-8 and is coarse from 6.1e-5 down. A value there is nothing where it is added to larger ones; where a
later operation makes a larger number of it again, a division or a norm, it was needed. A difference of two numbers is
off by what the larger one is rounded to, and may be negative where it cannot be: a root or a logarithm of it is then no
number.
"""

from __future__ import annotations

import torch
from torch import fx

from mlpdeploy.graph.editor import is_linear_of_constants, weight
from mlpdeploy.graph.kinds import MOVES, is_pointwise, is_view, packet, root_of
from mlpdeploy.graph.precision.ranges import Ranges
from mlpdeploy.graph.precision.reach import ROOTS, SUMS, Reach, computed

aten = torch.ops.aten

AT_ONE = {aten.logit, aten.acos, aten.asin, aten.atanh, aten.acosh, aten.log1p}
"""Operations that have no result, or a steep one, beyond an operand of 1 or -1."""

NEAR_ONE = 0.9
"""An operand that reaches this may come as close to 1 as its precision allows."""

Reasons = dict[fx.Node, str]


def divisors(module: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """The operations whose result is large, or far off, where an operand is close to 0; and that operand."""
    found = {}
    for node in module.graph.nodes:
        kind, operands = packet(node), node.args
        if kind is aten.div and len(operands) > 1:
            found[node] = operands[1]
        elif kind in ROOTS or kind is aten.reciprocal or (kind is aten.pow and _has_pole(operands[1])):
            found[node] = operands[0]
    return {node: one for node, one in found.items() if isinstance(one, fx.Node) and one.op == "call_function"}


def _has_pole(exponent: object) -> bool:
    return isinstance(exponent, float | int) and (exponent < 0 or exponent != int(exponent))


def small(module: fx.GraphModule, ranges: Ranges, reach: Reach) -> dict[str, str]:
    """Why each node that must be computed in FP32 because of a small value must, by node name."""
    found: Reasons = {}
    for node, operand in divisors(module).items():
        found |= _close_to_zero(node, operand, ranges, reach) | _of_a_difference(node, operand, ranges, reach) | found
    if reach.dtype is torch.float16:
        for node in module.graph.nodes:
            found |= _vanishing(module, node, ranges, reach) | found
    for node in module.graph.nodes:
        found |= _close_to_one(node, ranges, reach) | found
    return {node.name: reason for node, reason in found.items()}


def _close_to_zero(node: fx.Node, operand: fx.Node, ranges: Ranges, reach: Reach) -> Reasons:
    """An operand that comes so close to 0 in the range pass that the low precision gets the result wrong."""
    low, root = ranges.lows.get(operand.name, 1.0), root_of(operand)
    ahead = reach.ahead(operand)
    if low >= reach.limits.smallest_normal or not ahead:
        return {}
    exact, known = (number ** (1 / root) for number in (low, reach.rounded(low)))
    behind = reach.through(node, operand, exact, known)
    told = f"{exact:.3g}, which is too small for {reach.name}"
    return {one: f"computes {told}" for one in ahead} | {one: f"reads {told}" for one in behind} if behind else {}


def _close_to_one(node: fx.Node, ranges: Ranges, reach: Reach) -> Reasons:
    """An operand that comes close to where the operation ends: the low precision rounds it to there."""
    if packet(node) not in AT_ONE:
        return {}
    operand = node.all_input_nodes[0]
    if ranges.largest.get(operand.name, 0.0) < NEAR_ONE or (packet(node) is aten.log1p and not _turned(operand)):
        return {}
    ahead = reach.ahead(operand)
    told = f"what {reach.name} rounds to 1"
    return {one: f"computes {told}" for one in ahead} | ({node: f"reads {told}"} if ahead else {})


def _turned(node: fx.Node) -> bool:
    """Whether a value is another one with its sign turned."""
    return packet(node) is aten.neg or (packet(node) is aten.mul and min(_numbers(node)) < 0)


def _of_a_difference(node: fx.Node, operand: fx.Node, ranges: Ranges, reach: Reach) -> Reasons:
    """A root or logarithm of a difference whose rounding is larger than what is added to it."""
    if packet(node) not in ROOTS and packet(node) is not aten.pow:
        return {}
    chain, floor = [], 0.0
    while is_pointwise(operand) or is_view(operand):
        chain.append(operand)
        inputs = [one for one in operand.all_input_nodes if one.op == "call_function"]
        if packet(operand) in {aten.sub, aten.rsub} and reach.ahead(operand):
            largest = max(ranges.usual.of(one) for one in operand.all_input_nodes)
            rounding = reach.limits.eps * max(largest, *map(abs, _numbers(operand)))
            if rounding <= floor:
                return {}
            told = f"a difference that {reach.name} knows to {rounding:.2g}"
            kept = reach.ahead(operand) | {*chain}
            return {one: f"computes {told}" for one in kept} | {node: f"reads {told}"}
        if len(inputs) != 1:
            return {}
        floor = max(floor, *_numbers(operand)) if packet(operand) in SUMS | {aten.clamp_min, aten.clamp} else floor
        operand = inputs[0]
    return {}


def _numbers(node: fx.Node) -> list[float]:
    return [0.0, *(float(arg) for arg in node.args if isinstance(arg, float | int))]


def _vanishing(module: fx.GraphModule, node: fx.Node, ranges: Ranges, reach: Reach) -> Reasons:
    """A value that is too small everywhere, and what reads it until it is not."""
    peak = ranges.usual.of(node)
    if not 0 < peak < reach.limits.smallest_normal:
        return {}
    behind = _until_larger(module, node, ranges, reach)
    told = f"{peak:.3g}, which is too small for {reach.name}"
    own = {node: f"reaches only {told}"} if behind and node.op == "call_function" else {}
    return own | {one: f"reads {told}" for one in behind}


def _until_larger(module: fx.GraphModule, node: fx.Node, ranges: Ranges, reach: Reach) -> frozenset[fx.Node]:
    """What reads a small value up to the operations that make a larger one of it; not those in which it is lost."""
    found = frozenset[fx.Node]()
    for user in node.users:
        peak = ranges.usual.of(user)
        if user.op != "call_function" or _absorbs(module, user, node, ranges, reach):
            continue
        if 0 < peak < reach.limits.smallest_normal or user.target in MOVES:
            behind = _until_larger(module, user, ranges, reach)
            found |= behind | {user} if behind else behind
        elif peak > 0 and not all(_absorbs(module, one, user, ranges, reach) for one in user.users):
            found |= {user}
    return found


def _absorbs(module: fx.GraphModule, user: fx.Node, node: fx.Node, ranges: Ranges, reach: Reach) -> bool:
    """Whether `node` is less in what `user` makes than the low precision rounds off."""
    share = ranges.usual.of(node)
    rounding = reach.limits.eps * ranges.usual.of(user)
    if packet(user) in SUMS:
        return share <= rounding
    if is_linear_of_constants(user):
        matrix = weight(module, user.args[1])
        assert matrix is not None
        most = 0.0 if node in user.args[2:] else float(matrix.abs().sum(1).max())
        operand = user.all_input_nodes[0]
        return most * (share if node is operand else ranges.usual.of(operand)) <= rounding
    if is_pointwise(user) and user.all_input_nodes == [node]:
        return reach.same(*(computed(user, node, number) for number in (share, 0.0)))
    return packet(user) in {aten.softmax, aten.log_softmax}
