"""Projections whose meaning is known, between rearrangements that are spelled at random: each must be found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import einops
import pytest
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.graph.proof import fired, moves, prove

Step = Callable[[Tensor], Tensor]
Names = tuple[str, ...]
Groups = tuple[Names, ...]


@dataclass(frozen=True)
class Rearrangement:
    """Steps that together rearrange a tensor, with the source text of each."""

    steps: tuple[tuple[str, Step], ...]

    def __call__(self, x: Tensor) -> Tensor:
        for _, step in self.steps:
            x = step(x)
        return x

    def __repr__(self) -> str:
        return " ".join(text for text, _ in self.steps)


class Speller:
    """Spells `source -> target`, two groupings of the same named axes, in a way that `draw` chooses."""

    def __init__(self, draw: st.DrawFn, sizes: dict[str, int]) -> None:
        self.draw, self.sizes = draw, sizes
        self.steps: list[tuple[str, Step]] = []

    def spell(self, source: Groups, target: Groups) -> Rearrangement:
        """Any one of: einops; split, move, merge, each in its own spelling; with or without a detour."""
        if self.draw(st.integers(0, 3)) == 0:
            self._einops(source, target)
        else:
            atoms = tuple((name,) for group in source for name in group)
            goal = tuple((name,) for group in target for name in group)
            self._split(source, atoms)
            self._move([group[0] for group in atoms], [group[0] for group in goal])
            self._merge(goal, target)
        if self.draw(st.booleans()):
            self._detour()
        return Rearrangement(tuple(self.steps))

    def add(self, text: str, step: Step) -> None:
        self.steps.append((text, step))

    def size(self, names: Names) -> int:
        return -1 if "b" in names else math.prod(self.sizes[name] for name in names)

    def _einops(self, source: Groups, target: Groups) -> None:
        left, right = (" ".join(f"({' '.join(group)})" for group in side) for side in (source, target))
        pattern, sizes = (
            f"{left} -> {right}",
            {k: v for k, v in self.sizes.items() if any(k in group for group in source)},
        )
        self.add(f"rearrange({pattern})", lambda x: einops.rearrange(x, pattern, **sizes))

    def _shape(self, groups: Sequence[Names]) -> None:
        shape = [self.size(group) for group in groups]
        self.add(f".reshape({shape})", lambda x: x.reshape(shape))

    def _split(self, source: Groups, atoms: Groups) -> None:
        if self.draw(st.booleans()):
            return self._shape(atoms)
        for index in reversed(range(len(source))):
            if len(source[index]) > 1:
                sizes = [self.size((name,)) for name in source[index]]
                self.add(f".unflatten({index}, {sizes})", lambda x, index=index, sizes=sizes: x.unflatten(index, sizes))
        return None

    def _merge(self, goal: Groups, target: Groups) -> None:
        if self.draw(st.booleans()):
            return self._shape(target)
        for index, group in enumerate(target):
            if len(group) > 1:
                end = index + len(group) - 1
                self.add(f".flatten({index}, {end})", lambda x, index=index, end=end: x.flatten(index, end))
        return None

    def _move(self, names: list[str], goal: list[str]) -> None:
        kind = self.draw(st.integers(0, 3))
        order = [names.index(name) for name in goal]
        if kind == 0:
            self.add(f".permute({order})", lambda x: x.permute(order))
        elif kind == 1:
            self.add(f".movedim({order}, {[*range(len(order))]})", lambda x: x.movedim(order, [*range(len(order))]))
        else:
            for index, name in enumerate(goal):
                other = names.index(name)
                if other != index and kind == 2:
                    names[index], names[other] = names[other], names[index]
                    self.add(f".transpose({index}, {other})", lambda x, a=index, b=other: x.transpose(a, b - x.dim()))
                elif other != index:
                    names.insert(index, names.pop(other))
                    self.add(f".movedim({other}, {index})", lambda x, a=other, b=index: x.movedim(a, b))

    def _detour(self) -> None:
        detours: list[tuple[str, Step]] = [
            (".contiguous()", lambda x: x.contiguous()),
            (".clone()", lambda x: x.clone()),
            ("[:, None].squeeze(1)", lambda x: x[:, None].squeeze(1)),
            (".unsqueeze(0).mT.mT[0]", lambda x: x.unsqueeze(0).mT.mT[0]),
            (".flatten(0, 1).unflatten(0, (-1, k))", lambda x: x.flatten(0, 1).unflatten(0, (-1, x.shape[1]))),
        ]
        self.add(*self.draw(st.sampled_from(detours)))


@dataclass(frozen=True)
class Case:
    """`shape`: of the network's stream; `there` and `back`: around a linear over `width` elements."""

    shape: tuple[int, ...]
    width: int
    there: Rearrangement
    back: Rearrangement


@st.composite
def cases(draw: st.DrawFn, stream: Groups, contracted: tuple[Names, ...]) -> Case:
    """A linear over the axes of one of `contracted`, in any order, of a stream (b, *groups), all sizes random."""
    names = [name for group in stream for name in group]
    sizes = {name: draw(st.sampled_from([2, 3, 4, 5])) for name in names}
    chosen = list(draw(st.sampled_from(contracted)))
    over = tuple(draw(st.permutations(chosen)))
    rest = draw(st.permutations(["b", *(name for name in names if name not in over)]))
    groups: list[Names] = []
    for name in rest:
        if groups and draw(st.booleans()):
            groups[-1] = (*groups[-1], name)
        else:
            groups.append((name,))
    source, target = (("b",), *stream), (*groups, over)
    there, back = Speller(draw, sizes).spell(source, target), Speller(draw, sizes).spell(target, source)
    width = math.prod(sizes[name] for name in over)
    return Case(tuple(math.prod(sizes[name] for name in group) for group in stream), width, there, back)


class Mixing(nn.Module):
    """A residual block whose mixing is the case, between LayerNorms, and one of channels."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.norm, self.last = nn.LayerNorm(case.shape[-1]), nn.LayerNorm(case.shape[-1])
        self.first, self.second = nn.Linear(case.width, case.width), nn.Linear(case.width, case.width, bias=False)
        self.channels = nn.Linear(case.shape[-1], case.shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        rows = self.case.there(self.norm(x))
        x = x + self.case.back(self.second(F.gelu(self.first(rows))))
        return self.last(x + self.channels(x))


QUICK = settings(
    max_examples=16, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.slow
@QUICK
@given(cases((("t", "u"), ("c",)), (("t", "u"), ("u",), ("t",))))
def test_token_mixing(case: Case) -> None:
    result = prove(Mixing(case), case.shape, batches=(1, 2, 5))
    assert (fired(result)["project_tokens"], fired(result)["project_segments"], moves(result)) == (2, 0, 0)


@pytest.mark.slow
@QUICK
@given(cases((("h",), ("w",), ("n", "s")), (("h",), ("w",), ("h", "w"), ("n",), ("w", "n"))))
def test_axial_mixing(case: Case) -> None:
    result = prove(Mixing(case), case.shape, batches=(1, 2, 5))
    assert (fired(result)["project_tokens"], fired(result)["project_segments"], moves(result)) == (2, 0, 0)


@pytest.mark.slow
@QUICK
@given(cases((("h",), ("w",), ("n", "s")), (("h", "s"), ("w", "s"), ("h", "w", "s"), ("h", "n", "s"))))
def test_permute_mlp(case: Case) -> None:
    result = prove(Mixing(case), case.shape, batches=(1, 2, 5))
    assert (fired(result)["project_tokens"], fired(result)["project_segments"], moves(result)) == (0, 2, 0)


@pytest.mark.slow
@QUICK
@given(cases((("h",), ("w",), ("n", "s")), (("s",), ("n", "s"), ("w", "n", "s"))))
def test_channel_mixing_stays_a_linear(case: Case) -> None:
    result = prove(Mixing(case), case.shape, batches=(1, 2, 5))
    assert (fired(result)["project_tokens"], fired(result)["project_segments"], moves(result)) == (0, 0, 0)
