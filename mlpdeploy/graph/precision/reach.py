"""How far a number that a low precision does not know is carried in FP32: behind it, and ahead of it.

Behind: along its readers, up to the one that makes a number of it that the low precision knows, and another one than it
would make of what the low precision has instead: `1e-8 -> sqrt -> 1 / x`. A reader for which both are the same (x + 1,
a projection of many terms) needs no more than the low precision.

Ahead: back through what gives a value its own size: means, squares, exponentials and products, and what only hands
these on. A projection, an activation or an input is known as well as the low precision knows anything.
"""

from __future__ import annotations

import math

import torch
from torch import fx

from mlpdeploy.graph.kinds import MOVES, is_pointwise, is_real, is_tensor, is_view, packet

aten = torch.ops.aten

SUMS = {aten.add, aten.sub, aten.rsub}
ROOTS = {aten.sqrt, aten.rsqrt, aten.log, aten.log2, aten.log10}
"""Operations that have no result for what is negative, and make more of a small number."""

CARRIERS = SUMS | {aten.mul, aten.maximum, aten.minimum, aten.where, aten.masked_fill, aten.clamp, aten.expand_as}
"""Operations of several tensors that hand a small operand on where the others are 0, 1, or not chosen."""

REDUCTIONS = {
    aten.sum, aten.mean, aten.cumsum, aten.prod, aten.amax, aten.amin, aten.max, aten.min, aten.avg_pool2d,
    aten.adaptive_avg_pool2d, aten.logsumexp,
}  # fmt: skip
SQUARES = {aten.var, aten.std, aten.var_mean, aten.std_mean, aten.linalg_vector_norm, aten.linalg_norm, aten.norm}
SIZES = {
    aten.pow, aten.square, aten.sqrt, aten.rsqrt, aten.reciprocal, aten.exp, aten.exp2, aten.expm1, aten.log, aten.log2,
    aten.log10, aten.log1p, aten.sigmoid, aten.tanh, aten.softplus, aten.softmax, aten.log_softmax, aten.log_sigmoid,
    aten.sin, aten.cos, aten.erf, aten.erfc,
}  # fmt: skip
"""Operations whose results have other sizes than their operands."""

ACTIVATIONS = {
    aten.gelu, aten.silu, aten.hardswish, aten.mish, aten.elu, aten.selu, aten.celu, aten.leaky_relu, aten.prelu,
    aten.hardsigmoid,
}  # fmt: skip

NAMES = {torch.float16: "FP16", torch.bfloat16: "BF16"}


class Reach:
    """Looks along the graph for a low precision `dtype`."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.name = dtype, NAMES[dtype]
        self.limits = torch.finfo(dtype)
        self.told: dict[tuple[fx.Node, float, float], frozenset[fx.Node]] = {}
        self.made: dict[tuple[fx.Node, bool], frozenset[fx.Node]] = {}

    def known(self, number: float) -> bool:
        """Whether the low precision has a normal number for `number`, or 0 where it is 0."""
        return number == 0 or self.limits.smallest_normal <= abs(number) <= self.limits.max

    def rounded(self, number: float) -> float:
        """What the low precision has for a number."""
        return float(torch.tensor(number, dtype=torch.float64).to(self.dtype))

    def same(self, exact: float, low: float) -> bool:
        """Whether two numbers are one to the low precision, or the exact one is none."""
        return math.isnan(exact) or exact == low or abs(exact - low) <= self.limits.eps * abs(exact)

    def behind(self, node: fx.Node, exact: float, low: float) -> frozenset[fx.Node]:
        """The readers of `node`, and theirs, that tell `exact` from `low` in it; empty if none does."""
        if (key := (node, exact, low)) not in self.told:
            self.told[key] = frozenset().union(*(self.through(user, node, exact, low) for user in node.users))
        return self.told[key]

    def through(self, user: fx.Node, node: fx.Node, exact: float, low: float) -> frozenset[fx.Node]:
        """`user` and what reads it, as far as they tell `exact` from `low` in `node`."""
        kind = packet(user)
        if user.op != "call_function" or kind is None:
            return self._with(user, exact, low) if user.target in MOVES else frozenset()
        if user.target in MOVES or is_view(user) or kind in REDUCTIONS:
            return self._with(user, exact, low)
        if not is_pointwise(user):
            return frozenset()
        if user.all_input_nodes == [node]:
            return self._evaluated(user, node, exact, low)
        if self.same(exact, low):
            return frozenset()
        return self._with(user, exact, low) if kind in CARRIERS else frozenset({user})

    def _with(self, user: fx.Node, exact: float, low: float) -> frozenset[fx.Node]:
        found = self.behind(user, exact, low)
        return found | {user} if found else found

    def _evaluated(self, user: fx.Node, node: fx.Node, exact: float, low: float) -> frozenset[fx.Node]:
        """Of an operation of one tensor, by computing it."""
        first, second = (computed(user, node, number) for number in (exact, low))
        if self.same(first, second):
            return frozenset()
        if self.known(first) or packet(user) in ROOTS:
            return frozenset({user})
        if abs(first) > self.limits.max:
            return frozenset({user, *(reader for reader in user.users if reader.op == "call_function")})
        return self._with(user, first, second)

    def ahead(self, node: fx.Node, squared: bool = False) -> frozenset[fx.Node]:
        """The nodes that give `node` its size, itself included; empty where the low precision knows it well enough.

        Behind a square (`squared`) a sum is one of them only where it takes a mean away.
        """
        if (key := (node, squared)) not in self.made:
            self.made[key] = frozenset()
            self.made[key] = self._ahead(node, squared)
        return self.made[key]

    def _ahead(self, node: fx.Node, squared: bool) -> frozenset[fx.Node]:
        kind = packet(node)
        if node.op != "call_function" or kind in ACTIVATIONS or (is_tensor(node) and not is_real(node)):
            return frozenset()
        operands = [one for one in node.all_input_nodes if one.op != "get_attr"]
        operands = operands[:1] if is_view(node) else operands
        if kind in REDUCTIONS | SQUARES | SIZES or (kind is aten.div and len(operands) > 1):
            inner = squared or kind not in REDUCTIONS
            return frozenset({node}).union(*(self.ahead(one, inner) for one in operands))
        if kind is aten.mul and not squared and _factors(node) > 1:
            return frozenset({node}).union(*(self.ahead(one, True) for one in operands))
        if not (is_pointwise(node) or is_view(node) or node.target in MOVES):
            return frozenset()
        parts = [self.ahead(one, squared) for one in operands]
        if kind in SUMS and len(operands) > 1:
            taken = [self.ahead(one) for one in operands if packet(seen(one)) in REDUCTIONS]
            parts = taken if squared or not all(parts) else parts
        found = frozenset[fx.Node]().union(*parts)
        return found | {node} if found else found


def _factors(node: fx.Node) -> int:
    return sum(isinstance(arg, fx.Node) and arg.op != "get_attr" for arg in node.args)


def seen(node: fx.Node) -> fx.Node:
    """What a chain of views shows."""
    while is_view(node) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def computed(user: fx.Node, node: fx.Node, number: float) -> float:
    """What an operation makes of one number."""
    value = torch.tensor(number, dtype=torch.float64)
    args, kwargs = fx.map_arg((user.args, dict(user.kwargs)), lambda _: value)
    return float(user.target(*args, **kwargs))  # type: ignore[operator]
