"""Contenders in sittings and in pairs of loads: what is loaded when, for how long it is timed, and what follows."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mlpdeploy.evidence.latency import contenders, load_pairs, sequential_test, sittings, timing
from mlpdeploy.graph.tracing.trace import TensorSpec
from mlpdeploy.progress import Silent

SPEC = TensorSpec("image", (3, 4, 4), torch.float32)


def sleeper(name: str, seconds: float, loads: list[str]) -> contenders.Contender:
    @contextlib.contextmanager
    def load() -> Iterator[Callable[[Any], object]]:
        loads.append(name)
        yield lambda value: time.sleep(seconds)

    return contenders.Contender(name, "engine", name, (SPEC,), lambda arrays: arrays, load)


def test_every_sitting_loads_everything_anew_in_an_order_that_alternates() -> None:
    loads: list[str] = []
    both = [sleeper("a", 1e-3, loads), sleeper("b", 1e-2, loads)]
    taken = sittings.sittings(both, [1, 2], 4, 0.0, 0, Silent(), fewest=4)
    assert loads == ["a", "b", "b", "a", "b", "a", "a", "b"]
    assert set(taken) == {1, 2} and taken[1].sittings == (5, 5, 5, 5) and len(taken[1].medians("a")) == 4
    assert taken[2].ratio("b", "a").value > 1.5


class Clock:
    """A clock that only what is timed moves: `first` seconds more for whatever is loaded in the first sitting."""

    def __init__(self, loading: float, least: float, first: float = 0.0) -> None:
        self.now, self.loading, self.least, self.first, self.asked = 0.0, loading, least, first, list[float]()

    def held(self, monkeypatch: pytest.MonkeyPatch, seconds: float, count: int = 10, **options: Any) -> int:
        @contextlib.contextmanager
        def load() -> Iterator[Callable[[Any], object]]:
            self.now, self.first = self.now + self.loading + self.first, 0.0
            yield lambda value: None

        def timed(calls: Any, inputs: Any, *, seconds: float, **_: Any) -> timing.Timings:
            self.asked.append(seconds)
            self.now += max(seconds, self.least)
            return timing.Timings({name: np.ones(5) for name in calls}, dict.fromkeys(calls, 1), 0)

        monkeypatch.setattr(sittings, "timed", timed)
        one = contenders.Contender("a", "engine", "a", (SPEC,), lambda arrays: arrays, load)
        taken = sittings.sittings([one], [1, 2], count, seconds, 0, Silent(), clock=lambda: self.now, **options)
        return len(taken[1].sittings)


def test_the_seconds_cover_loading_too(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = Clock(loading=0.0, least=0.1)
    assert quick.held(monkeypatch, 20.0) == 10 and quick.now == pytest.approx(40)
    slow = Clock(loading=1.0, least=0.1)
    assert slow.held(monkeypatch, 20.0) == 10 and slow.now == pytest.approx(40)
    # What is compiled in the first sitting is not measuring.
    compiled = Clock(loading=1.0, least=0.1, first=300.0)
    assert compiled.held(monkeypatch, 20.0) == 10 and compiled.now == pytest.approx(340)


@pytest.mark.slow
def test_where_a_sitting_takes_too_long_there_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Clock(loading=2.0, least=4.0)
    assert slow.held(monkeypatch, 4.0) == sittings.FEWEST and slow.now == pytest.approx(30)
    some = Clock(loading=2.0, least=4.0)
    assert some.held(monkeypatch, 26.0) == 5 and some.now == pytest.approx(52, abs=5)
    every = Clock(loading=2.0, least=4.0)
    assert every.held(monkeypatch, 4.0, fewest=10) == 10
    assert Clock(loading=2.0, least=4.0).held(monkeypatch, 4.0, count=1) == 1


@pytest.mark.slow
def test_a_pair_loads_both_sides_once_in_either_order() -> None:
    loads: list[str] = []
    sides = (sleeper("baseline", 1e-3, loads), sleeper("candidate", 1e-2, loads))
    seconds = {1: 0.0, 2: 0.0}
    found = load_pairs.pairs(*sides, seconds, 0)
    pair, other = next(found)
    assert loads == ["baseline", "candidate", "candidate", "baseline"]
    assert (pair.batch, other.batch) == (1, 2) and pair.log_ratio > 0.5
    del seconds[2]  # decided
    assert [one.batch for one in next(found)] == [1]
    assert loads[4:] == ["candidate", "baseline", "baseline", "candidate"]


class Heap:
    """Memory as it was found to be: in the second load of a pair, the engine that is loaded first is `faster`.

    That is a load whose order is not that of the load before it, which left its memory behind.
    """

    def __init__(self, faster: float) -> None:
        self.faster, self.loads = faster, list[str]()

    def side(self, name: str) -> contenders.Contender:
        @contextlib.contextmanager
        def load() -> Iterator[Callable[[Any], object]]:
            self.loads.append(name)
            yield self.call(name)

        return contenders.Contender(name, "engine", name, (SPEC,), lambda arrays: arrays, load)

    def call(self, name: str) -> Callable[[Any], object]:
        place, number = len(self.loads) - 1, (len(self.loads) - 1) // 2
        return lambda value: 1.0 - self.faster * (number % 2 == 1 and place % 2 == 0)


@pytest.mark.parametrize("count", [10, 14, 20, 28])
def test_what_a_load_leaves_behind_favours_neither_side(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(calls: Any, inputs: Any, **_: Any) -> Any:
        return SimpleNamespace(seconds={name: np.full(5, call(None)) for name, call in calls.items()})

    monkeypatch.setattr(load_pairs, "timed", timed)
    heap = Heap(0.03)
    taken = itertools.islice(load_pairs.pairs(heap.side("baseline"), heap.side("candidate"), {1: 0.0}, 0), count)
    logs = [pair.log_ratio for (pair,) in taken]
    assert abs(sum(logs)) < 1e-9 < max(map(abs, logs))
    found = sequential_test.judge(logs, 0.03)
    assert found.value == pytest.approx(0, abs=1e-9) and found.low < 0 < found.high


@pytest.mark.slow
def test_a_trial_tells_loading_from_timing_and_is_the_second_of_two_loads() -> None:
    loads: list[str] = []

    @contextlib.contextmanager
    def load() -> Iterator[Callable[[Any], object]]:
        loads.append("")
        time.sleep(0.1 if len(loads) > 2 else 1.0)
        yield lambda value: time.sleep(1e-3)

    side = contenders.Contender("a", "engine", "a", (SPEC,), lambda arrays: arrays, load)
    cost = load_pairs.trial(replace(side, name="b"), side, [1, 2], 0)
    assert len(loads) == 4 and cost.loading >= 0.2 and set(cost.timing) == {1, 2}
    assert min(cost.timing.values()) >= 16e-3 and cost.least == pytest.approx(cost.loading + sum(cost.timing.values()))


def test_inputs_are_different_arrays_that_are_alike_for_all() -> None:
    made = contenders.prepared([sleeper("a", 0, []), sleeper("b", 0, [])], 2, 0)
    assert len(made["a"]) > contenders.DISTINCT and made["a"][0]["image"].shape == (2, 3, 4, 4)
    assert len({array["image"].ctypes.data for array in made["a"]}) == len(made["a"])
    assert not np.array_equal(made["a"][0]["image"], made["a"][1]["image"])
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(made["a"], made["b"], strict=True))


@pytest.mark.parametrize("sittings", [3, 4, 5, 10])
def test_few_sittings_widen_the_interval_and_cover_the_truth(sittings: int) -> None:
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):  # loads of one engine differ by 3 %, rounds within a load by 1 %
        taken = []
        for _ in range(sittings):
            sides = {name: rng.normal(1, 0.01, 6) * rng.normal(1, 0.03) for name in "ab"}
            taken.append(timing.Timings(sides, {"a": 1, "b": 1}, seed))
        ratio = timing.Timings.joined(taken).ratio("a", "b", resamples=400)
        held += ratio.low <= 1 <= ratio.high
    assert 0.91 <= held / 200 <= 1.0
