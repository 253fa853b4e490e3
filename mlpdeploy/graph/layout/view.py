"""The algebra of reshape and permute: a value is a stored tensor and a description of it in factorised axes.

In einops notation a description reads `b h w (n s) -> b n w (h s)`: the left side is how the tensor lies in memory,
the right side is what the network sees. Reshape and permute change only the right side, by splitting axes into
factors and reordering them, so any spelling of the same rearrangement ends in the same description.

Sizes are ints, or torch SymInts in the symbolic batch. An axis never has size 1: such a dimension has no axes.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch

Size = Any
"""An int, or a sympy expression in the batch symbol."""


def size_of(value: int | torch.SymInt) -> Size:
    """A plain int, or the sympy expression of a symbolic size."""
    if isinstance(value, int):
        return value
    expression = value.node.expr
    return int(expression) if expression.is_number else expression


def size_at(size: Size, batch: int) -> int:
    """A size where the batch is `batch`."""
    return size if isinstance(size, int) else int(size.subs(dict.fromkeys(size.free_symbols, batch)))


def quotient(numerator: Size, denominator: Size) -> Size | None:
    """The exact quotient of two sizes, or None where it is not a whole number for every batch; 1 of 0 by 0."""
    if denominator == 0:
        return 1 if numerator == 0 else None
    if isinstance(numerator, int) and isinstance(denominator, int):
        return numerator // denominator if numerator % denominator == 0 else None
    ratio = sympy.cancel(sympy.sympify(numerator) / denominator)
    if sympy.denom(ratio) != 1:
        return None
    return int(ratio) if ratio.is_number else ratio


@dataclass(frozen=True, eq=False)
class Axis:
    """One factor of a dimension; equal only to itself."""

    size: Size


Group = tuple[Axis, ...]


def numel(axes: Iterable[Axis]) -> Size:
    """Product of the sizes."""
    return math.prod(axis.size for axis in axes)


def flat(groups: Iterable[Group]) -> Group:
    """All axes of the groups, in order."""
    return tuple(axis for group in groups for axis in group)


@dataclass(frozen=True)
class View:
    """`stored`: the dimensions in memory; `seen`: the dimensions of the value; the same axes in both."""

    stored: tuple[Group, ...]
    seen: tuple[Group, ...]

    @staticmethod
    def of(shape: Sequence[Size]) -> View:
        """A tensor seen as it is stored."""
        groups = tuple(() if size == 1 else (Axis(size),) for size in shape)
        return View(groups, groups)

    @property
    def order(self) -> Group:
        """The axes from slowest to fastest in memory."""
        return flat(self.stored)

    @property
    def contiguous(self) -> bool:
        """Whether memory order is the order seen (only the grouping may differ)."""
        return self.order == flat(self.seen)

    @property
    def shape(self) -> tuple[Size, ...]:
        """The shape seen."""
        return tuple(numel(group) for group in self.seen)

    def permute(self, order: Sequence[int]) -> View:
        """The view after `permute(*order)`."""
        return View(self.stored, tuple(self.seen[index] for index in order))

    def reshape(self, shape: Sequence[Size]) -> View | None:
        """The view after `reshape(*shape)`, or None where the new dimensions cut across the axes."""
        pending = deque(flat(self.seen))
        groups: list[Group] = []
        splits: dict[Axis, Group] = {}
        for size in shape:
            group: list[Axis] = []
            rest = size
            while rest != 1:
                if not pending:
                    return None
                axis = pending.popleft()
                if (left := quotient(rest, axis.size)) is not None:
                    group.append(axis)
                    rest = left
                elif (right := quotient(axis.size, rest)) is not None:
                    splits[axis] = (Axis(rest), Axis(right))
                    group.append(splits[axis][0])
                    pending.appendleft(splits[axis][1])
                    rest = 1
                else:
                    return None
            groups.append(tuple(group))
        return None if pending else View(_split(self.stored, splits), tuple(groups))

    def replace(self, swaps: dict[Axis, Group]) -> View:
        """The same view with axes replaced by others (their factors, or an axis of another size)."""
        return View(_split(self.stored, swaps), _split(self.seen, swaps))

    def rename(self, names: dict[Axis, Axis]) -> View:
        """The same view told in other axes of the same sizes."""
        sides = (self.stored, self.seen)
        stored, seen = (tuple(tuple(names.get(axis, axis) for axis in group) for group in side) for side in sides)
        return View(stored, seen)

    def __str__(self) -> str:
        """Einops-like notation, for messages."""
        names = {axis: f"{chr(97 + index % 26)}{axis.size}" for index, axis in enumerate(self.order)}
        sides = []
        for side in (self.stored, self.seen):
            words = [" ".join(names[axis] for axis in group) or "1" for group in side]
            sides.append(" ".join(f"({word})" if " " in word else word for word in words))
        return " -> ".join(sides)


def _split(groups: tuple[Group, ...], swaps: dict[Axis, Group]) -> tuple[Group, ...]:
    def expand(axis: Axis) -> Group:
        return flat(expand(part) for part in swaps[axis]) if axis in swaps else (axis,)

    return tuple(flat(expand(axis) for axis in group) for group in groups)


def align(first: View, second: View) -> tuple[View, View] | None:
    """Two views of values of the same shape in the same axes, refined until they agree; None where they cannot.

    `first` keeps its axes but for those that had to be split; `second` is told in the axes of `first`. A dimension that
    is 1 in one of the two (broadcast) keeps its own axes.
    """
    ours_split: dict[Axis, Group] = {}
    theirs_split: dict[Axis, Group] = {}
    same: dict[Axis, Axis] = {}
    for ours, theirs in zip(first.seen, second.seen, strict=True):
        left, right = deque(ours), deque(theirs)
        while ours and theirs and (left or right):
            if not left or not right:
                return None
            a, b = left.popleft(), right.popleft()
            if (rest := quotient(a.size, b.size)) is None and (rest := quotient(b.size, a.size)) is None:
                return None
            if a.size != b.size and quotient(a.size, b.size) is not None:
                ours_split[a] = (Axis(b.size), Axis(rest))
                a, tail = ours_split[a]
                left.appendleft(tail)
            elif a.size != b.size:
                theirs_split[b] = (Axis(a.size), Axis(rest))
                b, tail = theirs_split[b]
                right.appendleft(tail)
            same[b] = a
    return first.replace(ours_split), second.replace(theirs_split).rename(same)


def runs(order: Sequence[Axis], chosen: Iterable[Axis]) -> list[Group]:
    """Maximal runs, in `order`, of axes that all are or all are not among `chosen`."""
    members = set(chosen)
    groups: list[list[Axis]] = []
    for axis in order:
        if groups and (groups[-1][-1] in members) == (axis in members):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    return [tuple(group) for group in groups]


def blocks(order: Group, target: Group, cuts: Collection[Axis] = ()) -> tuple[list[Group], list[int]]:
    """The longest runs of `order` that stay together in `target`, none across the start of one of `cuts`.

    And where they go: `target` is the runs in the order of these indices.
    """
    place = {axis: index for index, axis in enumerate(target)}
    found: list[list[Axis]] = []
    for axis in order:
        if found and axis not in cuts and place[found[-1][-1]] + 1 == place[axis]:
            found[-1].append(axis)
        else:
            found.append([axis])
    moved = sorted(range(len(found)), key=lambda index: place[found[index][0]])
    return [tuple(block) for block in found], moved


def permutation(stored: Sequence[Group], groups: Sequence[Group]) -> tuple[list[Group], list[int]]:
    """How a tensor that lies as `stored` comes to lie as `groups`: the dimensions to permute, and their new order.

    Of the ways to factor it, one that needs the fewest reshapes around the permutation, and then the fewest dimensions.
    """
    before, after = ({group[0] for group in side if group} for side in (stored, groups))
    ways = [blocks(flat(stored), flat(groups), cuts) for cuts in ({*()}, before, after, before | after)]

    def cost(way: tuple[list[Group], list[int]]) -> tuple[int, int]:
        parts, moved = way
        return (parts != list(stored)) + ([parts[index] for index in moved] != list(groups)), len(parts)

    return min(ways, key=cost)


def together(order: Group, stored: Sequence[Group]) -> tuple[Group, ...]:
    """The axes of `order` as dimensions: neighbours that lie next to each other in one of `stored` share one.

    A dimension for each axis would be as right, but engines have a largest rank (TensorRT's is 8).
    """
    follows = {axis: before for group in stored for before, axis in itertools.pairwise(group)}
    found: list[Group] = []
    for axis in order:
        if found and follows.get(axis) is found[-1][-1]:
            found[-1] = (*found[-1], axis)
        else:
            found.append((axis,))
    return tuple(found)


def meaning(
    view: View, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out_shape: Sequence[Size]
) -> View | None:
    """The view after any aliasing operation of torch, found by what it does to strides; None where it does more.

    The operation runs once on a contiguous meta tensor of the shape seen, with a prime for the batch. Its result is a
    rearrangement exactly when sorting its dimensions by stride gives a contiguous tensor of as many elements.

    `args[0]` is replaced by that tensor; the rest hold plain numbers (see `concrete`). `out_shape`: the symbolic shape
    of the result.
    """
    probe = torch.empty([concrete(size) for size in view.shape], device="meta")
    result = target(probe, *args[1:], **kwargs)
    if not isinstance(result, torch.Tensor) or result.numel() != probe.numel() or len(result.shape) != len(out_shape):
        return None
    if result.untyped_storage()._cdata != probe.untyped_storage()._cdata:  # a copy, whose strides say nothing
        return None
    real = [dim for dim, size in enumerate(result.shape) if size != 1]
    real.sort(key=result.stride, reverse=True)
    order = real + [dim for dim, size in enumerate(result.shape) if size == 1]
    if not result.permute(order).is_contiguous():
        return None
    inverse = [order.index(dim) for dim in range(len(order))]
    refined = view.reshape([out_shape[dim] for dim in order])
    return refined.permute(inverse) if refined is not None else None


BATCH_PRIME = 7919


def concrete(size: Size) -> int:
    """A size with a large prime in place of the batch, so that no factor of the network is mistaken for the batch."""
    return size_at(size, BATCH_PRIME)
