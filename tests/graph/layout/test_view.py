"""The algebra of views against numpy: whatever a view says is where the element lies."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import sympy
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlpdeploy.graph.layout.view import (
    Axis,
    Group,
    View,
    align,
    flat,
    meaning,
    numel,
    quotient,
    runs,
    size_of,
    together,
)

BATCH = sympy.Symbol("s0", positive=True, integer=True)
SIZES = st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4)
QUICK = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def seen(view: View, stored: np.ndarray) -> np.ndarray:
    """What the network sees of a stored array, told by the axes alone."""
    factors = stored.reshape([axis.size for axis in view.order])
    return factors.transpose([view.order.index(axis) for axis in flat(view.seen)]).reshape(view.shape)


def numbers(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(math.prod(shape)).reshape(shape)


@st.composite
def rearranged(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[View, np.ndarray]:
    """A view of `numbers(shape)` after random reshapes and permutes, and the array as numpy sees it."""
    view, array = View.of(shape), numbers(shape)
    for _ in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            order = draw(st.permutations(range(array.ndim)))
            view, array = view.permute(order), array.transpose(order)
            continue
        size = draw(st.sampled_from([n for n in range(1, array.size + 1) if array.size % n == 0]))
        goal = draw(st.sampled_from([(size, array.size // size), (array.size,), (1, size, array.size // size, 1)]))
        refined = view.reshape(goal)
        if refined is not None:
            view, array = refined, array.reshape(goal)
    return view, array


@QUICK
@given(st.data())
def test_reshape_and_permute_move_elements_as_numpy_does(data: st.DataObject) -> None:
    shape = tuple(data.draw(SIZES))
    view, array = data.draw(rearranged(shape))
    assert view.shape == array.shape
    assert all(axis.size != 1 for axis in view.order)
    assert sorted(map(id, view.order)) == sorted(map(id, flat(view.seen)))
    np.testing.assert_array_equal(seen(view, numbers(shape)), array)


@QUICK
@given(st.data())
def test_contiguous_says_that_memory_is_as_seen(data: st.DataObject) -> None:
    shape = tuple(data.draw(SIZES))
    view, array = data.draw(rearranged(shape))
    if view.contiguous:
        np.testing.assert_array_equal(array.reshape(-1), numbers(shape).reshape(-1))
    elif len({axis.size for axis in view.order}) == len(view.order):  # sizes that differ cannot move unseen
        assert not np.array_equal(array.reshape(-1), numbers(shape).reshape(-1))


@QUICK
@given(st.data())
def test_align_tells_two_views_in_the_same_axes(data: st.DataObject) -> None:
    shape = tuple(data.draw(SIZES))
    first, one = data.draw(rearranged(shape))
    total = math.prod(shape)
    second, other = data.draw(rearranged((total,)))
    refined = second.reshape(first.shape)
    if refined is None:
        return
    pair = align(first, refined)
    if pair is None:
        return
    ours, theirs = pair
    assert flat(ours.seen) == flat(theirs.seen)
    assert set(ours.order) == set(theirs.order)
    np.testing.assert_array_equal(seen(ours, numbers(shape)), one)
    np.testing.assert_array_equal(seen(theirs, numbers((total,))), other.reshape(first.shape))


@QUICK
@given(st.data())
def test_align_finds_common_factors_whenever_there_are_some(data: st.DataObject) -> None:
    """Both sides factor the same dimensions into runs of 2 and 3 in the same order, so a common refinement exists."""
    atoms = data.draw(st.lists(st.sampled_from([2, 3]), min_size=1, max_size=5))
    sides = []
    for _ in range(2):
        cuts = data.draw(st.lists(st.booleans(), min_size=len(atoms) - 1, max_size=len(atoms) - 1))
        groups: list[int] = [atoms[0]]
        for cut, atom in zip(cuts, atoms[1:], strict=True):
            if cut:
                groups.append(atom)
            else:
                groups[-1] *= atom
        axes = tuple(map(Axis, groups))
        order = data.draw(st.permutations(axes))
        sides.append(View(tuple((axis,) for axis in order), (axes,)))
    pair = align(*sides)
    if (
        pair is None
    ):  # only where cuts interleave: 6 | 2 against 2 | 6 has 2 3 | 2 in common, 4 | 3 against 3 | 4 nothing
        bounds = [set(itertools.accumulate((axis.size for axis in side.seen[0]), math.prod)) for side in sides]
        assert bounds[0] != bounds[1]
        return
    assert flat(pair[0].seen) == flat(pair[1].seen)
    assert numel(pair[0].seen[0]) == math.prod(atoms)


OPERATIONS = {
    "permute": (torch.ops.aten.permute.default, lambda x: ([*range(x.dim())][::-1],)),
    "transpose": (torch.ops.aten.transpose.int, lambda x: (0, -1)),
    "movedim": (torch.ops.aten.movedim.int, lambda x: (0, -1)),
    "flatten": (torch.ops.aten.flatten.using_ints, lambda x: (0, -1)),
    "unsqueeze": (torch.ops.aten.unsqueeze.default, lambda x: (1,)),
    "reshape": (torch.ops.aten.reshape.default, lambda x: ([x.numel() // 2, 2] if x.numel() % 2 == 0 else [-1],)),
    "mT": (torch.ops.aten.mT.default, lambda x: ()),
    "contiguous": (torch.ops.aten.contiguous.default, lambda x: ()),
    "narrow": (torch.ops.aten.slice.Tensor, lambda x: (0, 1, x.shape[0])),
    "strided": (torch.ops.aten.slice.Tensor, lambda x: (0, 0, x.shape[0], 2)),
    "expand": (torch.ops.aten.expand.default, lambda x: ([2, *x.shape],)),
    "diagonal": (torch.ops.aten.diagonal.default, lambda x: ()),
    "select": (torch.ops.aten.select.int, lambda x: (0, 0)),
}


@pytest.mark.parametrize("name", OPERATIONS)
@QUICK
@given(st.data())
def test_meaning_is_what_the_operation_does(name: str, data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.sampled_from([2, 3, 4, 1]), min_size=2, max_size=4)))
    view, array = data.draw(rearranged(shape))
    if array.ndim < 2:
        return
    target, arguments = OPERATIONS[name]
    x = torch.from_numpy(array.copy())
    wanted = target(x, *arguments(x))
    found = meaning(view, target, (None, *arguments(x)), {}, tuple(wanted.shape))
    if found is not None:
        np.testing.assert_array_equal(seen(found, numbers(shape)), wanted.numpy())
    elif name in ("permute", "transpose", "movedim", "flatten", "unsqueeze", "mT"):
        raise AssertionError(f"{name} of {view} is a rearrangement")


@pytest.mark.parametrize("target", [torch.ops.aten.contiguous.default, torch.ops.aten.to.dtype])
def test_another_memory_format_is_no_rearrangement(target: torch._ops.OpOverload) -> None:
    arguments = (torch.float32,) if target is torch.ops.aten.to.dtype else ()
    view = View.of((2, 3, 4, 5))
    assert meaning(view, target, (None, *arguments), {"memory_format": torch.channels_last}, (2, 3, 4, 5)) is None
    found = meaning(view, target, (None, *arguments), {}, (2, 3, 4, 5))
    assert found is not None
    assert found.contiguous


def test_the_batch_is_no_number() -> None:
    view = View.of((BATCH, 6, 4))
    merged = view.permute((0, 2, 1)).reshape((BATCH * 4, 6))
    assert merged is not None
    assert [axis.size for axis in flat(merged.seen)] == [BATCH, 4, 6]
    back = merged.reshape((BATCH, 4, 6))
    assert back is not None
    assert back.permute((0, 2, 1)).contiguous
    assert view.reshape((24, BATCH)) is None
    assert view.reshape((BATCH * 2, 12)) is not None
    assert view.reshape((BATCH * 5, 6)) is None


def test_reshape_refuses_to_cut_across_axes() -> None:
    moved = View.of((4, 6)).permute((1, 0))
    assert moved.reshape((8, 3)) is None
    assert moved.reshape((3, 2, 4)) is not None
    assert moved.reshape((4, 6)) is None
    assert View.of((4, 6)).reshape((5, 5)) is None


@pytest.mark.parametrize(
    ("numerator", "denominator", "result"),
    [(6, 3, 2), (6, 4, None), (BATCH, BATCH, 1), (6 * BATCH, 4, None), (6 * BATCH, 3 * BATCH, 2), (6, BATCH, None)],
)
def test_quotient_is_whole_for_every_batch(numerator: object, denominator: object, result: object) -> None:
    assert quotient(numerator, denominator) == result


def test_quotient_keeps_the_batch() -> None:
    assert quotient(6 * BATCH, 3) == 2 * BATCH
    assert isinstance(quotient(6 * BATCH, 3 * BATCH), int)


def test_axes_are_equal_only_to_themselves() -> None:
    assert Axis(4) != Axis(4)
    square = View.of((4, 4))
    assert not square.permute((1, 0)).contiguous
    assert square.permute((1, 0)).permute((1, 0)).contiguous


def test_align_keeps_dimensions_that_broadcast() -> None:
    full, column = View.of((2, 3, 4)).permute((0, 2, 1)), View.of((1, 4, 1))
    pair = align(full, column)
    assert pair is not None
    assert pair[1].seen == ((), pair[0].seen[1], ())
    assert align(View.of((4,)), View.of((6,))) is None


def test_runs_split_an_order_by_membership() -> None:
    a, b, c, d = axes = tuple(map(Axis, (2, 3, 4, 5)))
    expected: list[Group] = [(a,), (b, c), (d,)]
    assert runs(axes, {b, c}) == expected
    assert runs((), {a}) == []
    assert runs(axes, axes) == [axes]


def test_sizes_of_torch() -> None:
    assert size_of(3) == 3
    assert str(View.of((2, 1, 3)).permute((2, 1, 0))) == "a2 1 b3 -> b3 1 a2"


def test_neighbours_that_lie_in_one_dimension_share_one() -> None:
    a, b, c, d = (Axis(size) for size in (2, 3, 5, 7))
    assert together((a, b, c, d), [(a, b), (c, d)]) == ((a, b), (c, d))
    assert together((c, d, a), [(a, b), (c, d)]) == ((c, d), (a,))
    assert together((b, a), [(a, b)]) == ((b,), (a,))
    assert together((), [(a,)]) == ()
