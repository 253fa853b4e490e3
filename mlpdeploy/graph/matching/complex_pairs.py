"""What operations on complex numbers do to pairs of real ones: arithmetic, Fourier transforms, and what only moves."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from mlpdeploy.graph.editor import Editor, weight
from mlpdeploy.graph.kinds import arguments, shape_of
from mlpdeploy.graph.matching.spectra import (
    BILINEAR,
    FILLS,
    STRUCTURAL,
    TRANSFORMS,
    ZEROS,
    Transform,
    axes,
    complex_matrices,
    hermitian_matrices,
    real_matrices,
)

aten = torch.ops.aten

Part = Any
"""A node or a number; None where it is zero everywhere."""

ComplexPair = tuple[Part, Part]
"""Real and imaginary part."""

PARTS = "parts"
"""Where a complex node that was decomposed keeps its ComplexPair, in its `meta`."""


class Decomposer:
    """Writes the real form of one operation in front of it."""

    def __init__(self, editor: Editor, node: fx.Node) -> None:
        self.editor, self.node = editor, node

    def keep(self) -> None:
        """Leave the operation alone, with complex operands made of their parts again."""
        for operand in self.node.all_input_nodes:
            if PARTS in operand.meta and not isinstance(operand.meta["val"], list | tuple):
                self.node.replace_input_with(operand, self.call(aten.complex.default, *self.whole(operand)))

    def form(self, node: fx.Node) -> Any:
        """The parts of a complex result, or the node of a real one; None where there is no such form."""
        for operand in node.all_input_nodes:
            if operand.op == "get_attr" and is_complex(operand) and PARTS not in operand.meta:
                operand.meta[PARTS] = self.constant(operand)
        if any(is_complex(operand) and PARTS not in operand.meta for operand in node.all_input_nodes):
            return None
        if node.target in TRANSFORMS:
            return self.transform(node, *TRANSFORMS[node.target])
        if node.target in STRUCTURAL or node.target is operator.getitem or _fills_zeros(node):
            return self.both(node)
        if node.target in ZEROS:
            return self.zeros(node), None
        if node.target in BILINEAR:
            return self.bilinear(node)
        found = _FORMS.get(node.target)
        return None if found is None or node.kwargs else found(self, *node.args)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.editor.call(target, args, kwargs, origin=self.node)

    def constant(self, node: fx.Node) -> ComplexPair:
        tensor = weight(self.editor.module, node)
        assert tensor is not None
        with self.editor.before(node):
            re, im = (self.editor.constant(part, f"{node.target}_{name}", origin=node)
                      for part, name in ((tensor.real, "real"), (tensor.imag, "imag")))  # fmt: skip
        return re, im

    def parts(self, value: Any) -> ComplexPair:
        """The parts of an operand."""
        if isinstance(value, complex):
            return value.real or None, value.imag or None
        if isinstance(value, fx.Node) and PARTS in value.meta:
            known: ComplexPair = value.meta[PARTS]
            return known
        return value, None

    def whole(self, value: Any) -> tuple[fx.Node, fx.Node]:
        """The parts of an operand as nodes: zeros where one is None."""
        re, im = self.parts(value)
        like = im if re is None else re
        re, im = (self.call(aten.zeros_like.default, like) if part is None else part for part in (re, im))
        return re, im

    def sum(self, first: Part, second: Part, sign: int = 1) -> Part:
        """first + sign * second."""
        if second is None:
            return first
        if first is None:
            return second if sign > 0 else self.negative(second)
        if not isinstance(first, fx.Node) and isinstance(second, fx.Node):
            return self.call(aten.add.Tensor, second if sign > 0 else self.negative(second), first)
        return self.call(aten.add.Tensor if sign > 0 else aten.sub.Tensor, first, second)

    def product(self, x: ComplexPair, y: ComplexPair, multiply: Callable[[fx.Node, Part], fx.Node]) -> ComplexPair:
        """x * y, where `multiply` multiplies two parts."""

        def of(left: Part, right: Part) -> Part:
            if left is None or right is None:
                return None
            if not isinstance(left, fx.Node):
                left, right = right, left
            return multiply(left, right) if isinstance(left, fx.Node) else left * right

        (a, b), (c, d) = x, y
        return self.sum(of(a, c), of(b, d), -1), self.sum(of(a, d), of(b, c))

    def zeros(self, node: fx.Node) -> fx.Node:
        """Real zeros of the shape of a complex node."""
        sizes = [self.editor.size(size, origin=node) for size in shape_of(node)]
        return self.call(aten.zeros.default, sizes, dtype=node.meta["val"].dtype.to_real())

    def negative(self, part: Part) -> Part:
        if part is None:
            return None
        return self.call(aten.neg.default, part) if isinstance(part, fx.Node) else -part

    def both(self, node: fx.Node) -> ComplexPair:
        """What an operation that only moves, picks, joins or adds up values does to either part."""
        operands = [one for one in node.all_input_nodes if _has_numbers(one)]  # not indices and masks
        whole = {one: self.whole(one) for one in operands}
        sides = (fx.map_arg((node.args, dict(node.kwargs)), lambda one: whole[one][side] if one in whole else one)  # noqa: B023
                 for side in (0, 1))  # fmt: skip
        re, im = (self.call(node.target, *args, **kwargs) for args, kwargs in sides)
        return re, im

    def bilinear(self, node: fx.Node) -> ComplexPair | None:
        """(a + ib)(c + id), whatever the product is: of elements, of matrices, an einsum of two."""
        first, second = self.two(node)
        bias = node.args[2] if node.target is aten.linear.default and len(node.args) > 2 else None
        if first is None or (len(node.all_input_nodes) > 2 and bias is None):
            return None

        def multiply(left: fx.Node, right: Part) -> fx.Node:
            if node.target is aten.einsum.default:
                return self.call(node.target, node.args[0], [left, right])
            return self.call(node.target, left, right)

        re, im = self.product(self.parts(first), self.parts(second), multiply)
        shift = self.parts(bias)
        return self.sum(re, shift[0]), self.sum(im, shift[1])

    @staticmethod
    def two(node: fx.Node) -> tuple[Any, Any]:
        operands = node.args[1] if node.target is aten.einsum.default else node.args
        return (operands[0], operands[1]) if len(operands) >= 2 else (None, None)  # type: ignore[arg-type, index]

    def transform(self, node: fx.Node, kind: str, sign: int) -> Any:
        """A transform of one axis or several; None where the batch is one of them."""
        given = arguments(node)
        x = given["self"]
        shape = shape_of(x)
        dims, sizes = axes(given, len(shape))
        if any(not isinstance(shape[dim], int) for dim in dims) or len(set(dims)) != len(dims):
            return None
        pair = self.parts(x)
        places = list(zip(dims, sizes, strict=True))
        for dim, size in places[-1:] + places[:-1] if kind == "from real" else places:
            last = dim == dims[-1]
            step = kind if last else "complex"
            length = int(shape[dim])
            usual = 2 * (length - 1) if step == "to real" else length
            of = Transform(sign, length, usual if size is None else size, given["norm"] or "backward")
            pair = self.along(pair, dim, of, step)
        return pair[0] if kind == "to real" else pair

    def along(self, pair: ComplexPair, dim: int, of: Transform, kind: str) -> ComplexPair:
        """One transform of one axis."""
        cosines, sines = _MATRICES[kind](of)
        a, b, c, d = (self.projected(part, dim, matrix) for part in pair for matrix in (cosines, sines))
        re = self.sum(a, d, -of.sign)
        return (re, None) if kind == "to real" else (re, self.sum(c, b, of.sign))

    def projected(self, part: Part, dim: int, matrix: Tensor) -> Part:
        """A contraction of one axis with the columns of a matrix."""
        if part is None:
            return None
        return self.editor.project(part, dim, matrix, f"{self.node.name}_matrix", origin=self.node)


def is_complex(node: fx.Node) -> bool:
    values = pytree.tree_leaves(node.meta.get("val"))
    return any(isinstance(value, Tensor) and value.is_complex() for value in values)


def _has_numbers(node: fx.Node) -> bool:
    """Whether a node's value is of real or complex numbers, or is a list of such."""
    values = [value for value in pytree.tree_leaves(node.meta.get("val")) if isinstance(value, Tensor)]
    return bool(values) and all(value.is_floating_point() or value.is_complex() for value in values)


def _fills_zeros(node: fx.Node) -> bool:
    return node.target in FILLS and all(not arguments(node).get(name) for name in FILLS[node.target])


def _real(of: Decomposer, x: Any) -> Any:
    return of.whole(x)[0]


def _imaginary(of: Decomposer, x: Any) -> Any:
    return of.whole(x)[1]


def _conjugate(of: Decomposer, x: Any) -> ComplexPair:
    re, im = of.parts(x)
    return re, of.negative(im)


def _added(of: Decomposer, x: Any, y: Any, sign: int = 1) -> ComplexPair:
    (a, b), (c, d) = of.parts(x), of.parts(y)
    return of.sum(a, c, sign), of.sum(b, d, sign)


def _divided(of: Decomposer, x: Any, y: Any) -> ComplexPair | None:
    """By a real number only: the others are rare, and their squares overflow."""
    (a, b), (c, d) = of.parts(x), of.parts(y)
    if d is not None:
        return None
    re, im = (None if part is None else of.call(aten.div.Tensor, part, c) for part in (a, b))
    return re, im


def _power(of: Decomposer, x: Any, exponent: Any) -> ComplexPair | None:
    """By products, of a small whole exponent."""
    if exponent not in (2, 3, 4):
        return None
    result = of.parts(x)
    for _ in range(int(exponent) - 1):
        result = of.product(result, of.parts(x), partial(of.call, aten.mul.Tensor))
    return result


def _magnitude(of: Decomposer, x: Any) -> Any:
    re, im = (None if part is None else of.call(aten.square.default, part) for part in of.parts(x))
    return of.call(aten.sqrt.default, of.sum(re, im))


def _angle(of: Decomposer, x: Any) -> Any:
    re, im = of.whole(x)
    return of.call(aten.atan2.default, im, re)


def _as_pairs(of: Decomposer, x: Any) -> Any:
    return of.call(aten.stack.default, list(of.whole(x)), -1)


def _from_pairs(of: Decomposer, x: Any) -> ComplexPair:
    re, im = (of.call(aten.select.int, x, -1, place) for place in (0, 1))
    return re, im


def _from_parts(of: Decomposer, re: Any, im: Any) -> ComplexPair:
    return re, im


def _polar(of: Decomposer, magnitude: Any, angle: Any) -> ComplexPair:
    re, im = (of.call(aten.mul.Tensor, magnitude, of.call(one, angle)) for one in (aten.cos.default, aten.sin.default))
    return re, im


def _cast(of: Decomposer, x: Any, dtype: Any) -> Any:
    """A real number as a complex one, or one complex dtype as another."""
    return of.parts(x) if is_complex(of.node) else None


_FORMS: Mapping[Any, Callable[..., Any]] = {
    aten.real.default: _real,
    aten.imag.default: _imaginary,
    aten._conj.default: _conjugate,
    aten.conj_physical.default: _conjugate,
    aten.add.Tensor: _added,
    aten.sub.Tensor: lambda of, x, y: _added(of, x, y, -1),
    aten.rsub.Scalar: lambda of, x, y: _added(of, y, x, -1),
    aten.neg.default: lambda of, x: tuple(map(of.negative, of.parts(x))),
    aten.div.Tensor: _divided,
    aten.abs.default: _magnitude,
    aten.angle.default: _angle,
    aten.view_as_real.default: _as_pairs,
    aten.view_as_complex.default: _from_pairs,
    aten.complex.default: _from_parts,
    aten.polar.default: _polar,
    aten.to.dtype: _cast,
    aten.square.default: lambda of, x: _power(of, x, 2),
    aten.pow.Tensor_Scalar: _power,
}

_MATRICES = {"complex": complex_matrices, "from real": real_matrices, "to real": hermitian_matrices}
