"""Constants that FP16 or BF16 does not know, and what they protect: `x / (y + 1e-8)`, `log(p.clamp(1e-7, 1 - 1e-7))`.

before: y + 1e-8 in FP16, which is y + 0: where y is 0, its reciprocal is infinite
after:  y, y + 1e-8 and what reads it in FP32, up to the operation that makes a number of it that FP16 knows

A constant is lost where the low precision has 0, infinity or a subnormal number for it, or 1 for 0.9999999. That is a
fault where something behind it tells the two apart (see `reach`): a reciprocal, a logarithm, a root, a product with
1e9. Added to other terms it is lost by ordinary rounding, and stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from mlpdeploy.graph.editor import weight
from mlpdeploy.graph.kinds import COMPARISONS, arguments, is_pointwise, is_real, is_view, packet, root_of
from mlpdeploy.graph.precision.bounds import lower
from mlpdeploy.graph.precision.ranges import Peaks
from mlpdeploy.graph.precision.reach import SUMS, Reach, seen

aten = torch.ops.aten

BOUNDS = {aten.clamp, aten.clamp_min, aten.clamp_max, aten.maximum, aten.minimum, aten.hardtanh, aten.threshold}
CHOICES = {aten.where, aten.masked_fill, aten.full, aten.full_like, aten.new_full, aten.fill, aten.nan_to_num}
GUARDS = SUMS | BOUNDS | CHOICES
"""Operations whose result is their constant where the other operand is 0, out of bounds or not chosen."""

NORMS = {aten.layer_norm, aten.group_norm, aten.rms_norm, aten.instance_norm, aten.batch_norm}
"""Operations that every engine computes in FP32, with an epsilon in FP32."""

NUMERIC = {"Tensor", "number", "Optional[number]"}
"""Types of arguments that may be a whole number and mean a real one."""


@dataclass(frozen=True)
class Constant:
    """A number that an operation adds, chooses, multiplies by or compares with."""

    node: fx.Node
    number: float

    def told(self, reach: Reach) -> str:
        """The number, and what the low precision has instead."""
        low = reach.rounded(self.number)
        if not reach.known(self.number):
            instead = f"{low:g}" if low == 0 or math.isinf(low) else "subnormal"
        else:
            instead = f"{low:g}" if abs(low) == 1 else "lost beside a root"
        return f"{self.number:.9g}, which is {instead} in {reach.name}"

    def alone(self, reach: Reach) -> tuple[float, float]:
        """What the result is where the constant decides it, and what it is then in the low precision."""
        number = self.number
        if packet(self.node) in SUMS:
            number *= -1 if packet(self.node) is aten.sub and not isinstance(self.node.args[1], fx.Node) else 1
        low = reach.rounded(number)
        if not reach.known(number):
            return number, 0.0
        if abs(low) == 1 != abs(number):
            return (number - low, 0.0) if packet(self.node) in SUMS else (number, low)
        smallest = reach.limits.smallest_normal
        roots = any(map(_is_root, self.node.all_input_nodes)) and 0 < number * number < smallest
        return (number + math.sqrt(smallest), number) if roots else (number, number)


def protected(module: fx.GraphModule, peaks: Peaks, reach: Reach) -> dict[str, str]:
    """Why each node that must be computed in FP32 because of a lost constant must, by node name."""
    reasons: dict[str, str] = {}
    for node in module.graph.nodes:
        for constant in _constants(node, peaks):
            for one, reason in _kept(constant, reach).items():
                reasons.setdefault(one.name, reason)
        variance = _lost_variance(module, node, reach)
        if variance is not None:
            reasons.setdefault(node.name, f"has a variance of {variance:.3g}, which {reach.name} does not know")
    return reasons


def _constants(node: fx.Node, peaks: Peaks) -> Iterator[Constant]:
    """Those of a node; of a tensor that it adds, chooses or compares with, the largest magnitude."""
    kind = packet(node)
    if node.op != "call_function" or kind is None or kind in NORMS or not (is_real(node) or kind in COMPARISONS):
        return
    for place, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        value = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
        if isinstance(value, float) or (type(value) is int and str(argument.type) in NUMERIC):
            yield Constant(node, float(value))
    if kind in GUARDS | COMPARISONS:
        tensors = (one for one in node.all_input_nodes if one.op == "get_attr")
        yield from (Constant(node, peaks.of(one)) for one in tensors)


def _kept(constant: Constant, reach: Reach) -> dict[fx.Node, str]:
    """What a constant keeps in FP32, and why; nothing where it is known well enough."""
    node, number, kind = constant.node, constant.number, packet(constant.node)
    if not math.isfinite(number) or _never_decides(constant, reach):
        return {}
    told = constant.told(reach)
    if kind not in GUARDS:
        if reach.known(number):
            return {}
        # A product is wrong by itself; what is compared, or goes into an operation with an epsilon, must be right too.
        held = kind in COMPARISONS or not is_pointwise(node)
        return {node: f"has {told}"} | (_ahead([node], reach, told) if held else {})
    if abs(number) > reach.limits.max:
        # A bound that nothing reaches is harmless behind it.
        readers = [] if kind in BOUNDS else _readers(node)
        return {one: f"reads {told}" for one in readers} | {node: f"has {told}"}
    exact, low = constant.alone(reach)
    behind = frozenset() if exact == low else reach.behind(node, exact, low)
    if not behind:
        return {}
    guards = [node, *(one for one in behind if packet(one) in GUARDS)]
    return _ahead(guards, reach, told) | {one: f"reads {told}" for one in behind} | {node: f"has {told}"}


def _never_decides(constant: Constant, reach: Reach) -> bool:
    """Whether the other operand is never so small that the constant shows beside it, or as a bound of it."""
    node, number = constant.node, abs(constant.number)
    least = min((lower(one) for one in node.all_input_nodes if one.op != "get_attr"), default=-math.inf)
    if packet(node) in {aten.add, aten.sub} and arguments(node)["alpha"] == 1:
        return number <= least * reach.limits.eps / 2
    bound = packet(node) is not aten.clamp or constant.number == arguments(node)["min"]
    return packet(node) in {aten.clamp, aten.clamp_min, aten.maximum} and bound and constant.number <= least


def _ahead(guards: list[fx.Node], reach: Reach, told: str) -> dict[fx.Node, str]:
    operands = (operand for guard in guards for operand in guard.all_input_nodes)
    return {one: f"is held against {told}" for operand in operands for one in reach.ahead(operand)}


def _readers(node: fx.Node) -> list[fx.Node]:
    """Who reads a node, through views."""
    found = []
    for user in node.users:
        if user.op == "call_function":
            found += [user, *(_readers(user) if is_view(user) else [])]
    return found


def _is_root(node: fx.Node) -> bool:
    source = seen(node)
    return packet(source) is aten.sqrt or root_of(source) > 1


def _lost_variance(module: fx.GraphModule, node: fx.Node, reach: Reach) -> float | None:
    """The variance of a norm with constant ones that the low precision gets most wrong, where that is too much."""
    if packet(node) not in {aten.batch_norm, aten.instance_norm}:
        return None
    variance, epsilon = weight(module, node.args[4]), float(node.args[7])  # type: ignore[arg-type]
    if variance is None:
        return None
    exact, low = ((one.double() + epsilon).sqrt() for one in (variance, variance.to(reach.dtype)))
    wrong = ((low - exact).abs() / exact).nan_to_num(0.0, math.inf)
    return float(variance[wrong.argmax()]) if float(wrong.max()) > reach.limits.eps else None
