"""project_segments: projections of axes that lie apart, and results that are wanted otherwise."""

from __future__ import annotations

from collections.abc import Callable

import einops
import pytest
import torch.nn.functional as F
from torch import Tensor

from tests.graph.proof import aten, fired, moves, prove, targets
from tests.graph.rules.examples import Branches, Example, Layers, NearMiss

C = Layers.C
H, W, N, S = 2, 3, 5, 4
Run = Callable[[Layers, Tensor], Tensor]

EXAMPLE = Example(Branches, (4, 4, 16), fires=4)


def _segments(there: str, back: str, **sizes: int) -> Run:
    def forward(net: Layers, x: Tensor) -> Tensor:
        rows = einops.rearrange(x, there, **sizes)
        return einops.rearrange(F.linear(rows, net.weights[0]), back, **sizes)

    return forward


def _four_apart(net: Layers, x: Tensor) -> Tensor:
    rows = einops.rearrange(x, "b h w v c u -> b w c (h v u)")
    return einops.rearrange(F.linear(rows, net.weights[0]), "b w c (h v u) -> b h w v c u", h=H, v=2)


def _cut_across_axes(net: Layers, x: Tensor) -> Tensor:
    rows = einops.rearrange(x, "b h w (n s) -> b n w (h s)", n=N)
    mixed = F.linear(rows, net.weights[0])  # b n w 9
    return mixed.flatten(1).unflatten(1, (27, 5)).mT  # 135 = 27 * 5 cuts across n = 5, w = 3 and 9


def _rows_across_axes(net: Layers, x: Tensor) -> Tensor:
    """12 tokens seen as 8 by 9 of 6 channels: the rows of the linear are no axes of the tokens."""
    rows = x.flatten(1).unflatten(1, (8, 9)).mT
    return F.linear(rows, net.weights[0]).mT.flatten(1).unflatten(1, (12, 6))


def near_miss(back: str, wanted: str) -> NearMiss:
    """Segments that do not come back to where they were."""
    run = _segments("b h w (n s) -> b n w (h s)", back, n=N, h=H)
    why = f"its consumers want the result as ({wanted}): a transpose is needed"
    return NearMiss(lambda: Layers(run, (H * S, H * S)), (H, W, N * S), (why,))


NEAR_MISSES = {
    "returned with n first": near_miss("b n w (h s) -> b n w h s", "batch 5 3 2 4"),
    "height and segments change places": near_miss("b n w (h s) -> b n w (h s)", "batch 5 3 2 4"),
    "s comes back in front of n": near_miss("b n w (h s) -> b h w (s n)", "batch 2 3 4 5"),
    "a result that is cut across axes": NearMiss(
        lambda: Layers(_cut_across_axes, (9, H * S)), (H, W, N * S), ("its consumers want different layouts",)
    ),
    "rows that are cut across axes": NearMiss(
        lambda: Layers(_rows_across_axes, (8, 8)),
        (12, 6),
        holds=lambda result: targets(result)[aten.linear.default] + fired(result)["project_tokens"] == 1,
    ),
    "three runs": NearMiss(
        lambda: Layers(_four_apart, (H * 6, H * 6)),
        (H, W, 2, C, 3),
        holds=lambda result: not fired(result)["project_tokens"],
    ),
}


def _moved_between(net: Layers, x: Tensor) -> Tensor:
    """w comes in front of h, and (h c) is contracted where it lies after the move."""
    rows = einops.rearrange(x, "b h w c -> b w (h c)")
    return einops.rearrange(F.linear(rows, net.weights[0]), "b w (h c) -> b h w c", c=C)


def test_two_runs_are_a_segment_projection_with_one_segment_group() -> None:
    """(h c) of `b h w c` is p = h, q = w, s = c: that it has no n does not matter."""
    result = prove(Layers(_moved_between, (H * C, H * C)), (H, W, C))
    assert (fired(result)["project_tokens"], fired(result)["project_segments"], moves(result)) == (0, 1, 0)


def _apart(there: str, *back: str) -> Run:
    """A linear over axes that `there` brings last, for each of `back`: the first is what the last gives back."""

    def forward(net: Layers, x: Tensor) -> Tensor:
        rows = einops.rearrange(x, there)
        for weight in net.weights[:-1]:
            rows = F.gelu(F.linear(rows, weight))
        return einops.rearrange(F.linear(rows, net.weights[-1]), back[0], v=2, h=H)

    return forward


APART: dict[str, tuple[Run, tuple[tuple[int, int], ...], tuple[int, int, int]]] = {
    "one linear over (h v), and back": (
        _apart("b h w v c -> b w c (h v)", "b w c (h v) -> b h w v c"), ((H * 2, H * 2),), (0, 1, 0),
    ),
    "(v h), two linears, and back (RaftMLP)": (
        _apart("b h w v c -> b w c (v h)", "b w c (v h) -> b h w v c"), ((7, H * 2), (H * 2, 7)), (0, 2, 0),
    ),
    "(v h), three linears, and back": (
        _apart("b h w v c -> b w c (v h)", "b w c (v h) -> b h w v c"), ((7, H * 2), (5, 7), (H * 2, 5)), (1, 2, 0),
    ),
    "the result has c in front of v": (
        _apart("b h w v c -> b w c (h v)", "b w c (h v) -> b h w c v"), ((H * 2, H * 2),), (0, 1, 1),
    ),
    "the result has h behind w: k is 1": (
        _apart("b h w v c -> b w c (h v)", "b w c (h v) -> b w h v c"), ((H * 2, H * 2),), (0, 1, 0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_axes_apart_from_each_other_and_not_last(name: str) -> None:
    forward, shapes, found = APART[name]
    result = prove(Layers(forward, *shapes), (H, W, 2, C))
    assert (fired(result)["project_tokens"], fired(result)["project_segments"], moves(result)) == found


def test_segments_need_not_be_as_many_as_before() -> None:
    """9 results of (h s) = 8 elements are 3 segments of 3: k need not be h."""

    def run(net: Layers, x: Tensor) -> Tensor:
        rows = einops.rearrange(x, "b h w (n s) -> b n w (h s)", n=N)
        return einops.rearrange(F.linear(rows, net.weights[0]), "b n w (k t) -> b k w (n t)", k=3)

    result = prove(Layers(run, (9, H * S)), (H, W, N * S))
    assert (fired(result)["project_segments"], moves(result)) == (1, 0)
