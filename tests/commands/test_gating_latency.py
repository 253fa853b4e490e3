"""The time of `regress` is spent on a verdict: on a clock that is none, with pairs whose noise is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from mlpdeploy.commands.baseline import Baseline
from mlpdeploy.commands.gating_latency import Terms, against_saved, interleaved
from mlpdeploy.errors import InputError
from mlpdeploy.evidence.documents import outcome
from mlpdeploy.evidence.documents.regress import LATENCY
from mlpdeploy.evidence.latency import contenders, load_pairs, sequential_test, sittings, timing
from mlpdeploy.evidence.latency.time_budget import Cost
from mlpdeploy.progress import Stages
from tests.listening import Listener

COST = Cost(loading=0.2, timing={1: 0.25})
"""What a load of mixer_s32 costs on two quiet cores, about."""
NOISE = 0.011
"""Standard deviation of a load's log ratio, as it was recorded."""

Draw = Callable[[int, int], float]


class Machine:
    """Pairs of loads whose log ratio is drawn (by place and batch), and a clock that only they move."""

    def __init__(self, draw: Draw, cost: Cost = COST) -> None:
        self.draw, self.cost, self.now, self.timed = draw, cost, 0.0, list[tuple[int, ...]]()

    def trial(self, *_: Any) -> Cost:
        self.now += 2 * self.cost.least
        return self.cost

    def pairs(self, baseline: Any, candidate: Any, seconds: Mapping[int, float], seed: int) -> Iterator[Any]:
        while True:
            self.now += 2 * (self.cost.loading + sum(seconds.values()))
            self.timed.append(tuple(seconds))
            yield tuple(self.pair(size) for size in seconds)

    def pair(self, size: int) -> load_pairs.LoadPair:
        logs = [self.draw(len(self.timed) * 2 + load, size) for load in (0, 1)]
        loads = tuple(load_pairs.Load(0.01 * math.exp(log), 0.01 * math.exp(log)) for log in logs)
        return load_pairs.LoadPair(size, (load_pairs.Load(0.01, 0.01),) * 2, loads)  # type: ignore[arg-type]

    def run(self, monkeypatch: pytest.MonkeyPatch, seconds: float, sizes: tuple[int, ...] = (1,)) -> Any:
        monkeypatch.setattr(load_pairs, "trial", self.trial)
        monkeypatch.setattr(load_pairs, "pairs", self.pairs)
        self.listener = Listener()
        terms = Terms(sizes, 1, seconds, 0.03, 0)
        sides: Any = (None, None)
        self.gates, self.measured = interleaved(*sides, terms, Stages(self.listener), lambda: self.now)
        return {found.batch: found.verdict for found in self.gates}


def noise(seed: int, slowdown: float, deviation: float = NOISE) -> Draw:
    rng = np.random.default_rng(seed)
    return lambda place, size: float(rng.normal(math.log1p(slowdown), deviation))


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [8.0, 40.0, 300.0])
def test_the_same_engine_passes_and_five_per_cent_are_caught_whatever_the_budget(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = [Machine(noise(seed, 0.0)).run(monkeypatch, seconds)[1] for seed in range(25)]
    assert same == [sequential_test.PASSED] * 25
    slower = [Machine(noise(seed, 0.05)).run(monkeypatch, seconds)[1] for seed in range(10)]
    assert slower.count(sequential_test.PASSED) == 0 and slower.count(sequential_test.REGRESSED) >= (
        5 if seconds < 20 else 10
    )


def test_a_short_budget_takes_the_pairs_that_a_verdict_needs_and_says_so_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(noise(0, 0.0))
    assert machine.run(monkeypatch, 8.0) == {1: sequential_test.PASSED}
    assert machine.listener.lines == [
        "--time 8 is too short for 10 pairs of loads, which a verdict needs: they take about 9 s"
    ]
    assert len(machine.timed) == 10 and machine.now == pytest.approx(0.9 + 9.0)


def test_it_stops_as_soon_as_it_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(noise(0, 0.0))
    machine.run(monkeypatch, 300.0)
    assert machine.listener.lines == ["about 18 s for 10 pairs of loads, which a verdict needs; at most 300 s"]
    assert machine.now < 30 and len(machine.measured[0].medians_ms) == 20
    assert machine.gates[0].change is not None and machine.gates[0].reason == ""


def test_a_noisy_machine_has_all_of_the_time_and_not_more(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(noise(0, 0.0, deviation=0.5))
    assert machine.run(monkeypatch, 60.0) == {1: sequential_test.UNDECIDED}
    assert 60 - 2.2 <= machine.now <= 60 and len(machine.timed) > 10
    assert machine.gates[0].reason == f"undecided after {len(machine.timed)} pairs: --time gives it more"


def test_after_the_last_look_more_time_is_not_recommended(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(noise(0, 0.0, deviation=0.5))
    assert machine.run(monkeypatch, 3000.0) == {1: sequential_test.UNDECIDED}
    assert len(machine.timed) == sequential_test.LOOKS[-1] and "a quieter machine tells more" in machine.gates[0].reason


def test_a_size_that_is_decided_is_not_timed_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    wild = noise(0, 0.0, deviation=0.5)
    machine = Machine(lambda place, size: wild(place, size) if size == 8 else 0.0, Cost(0.2, {1: 0.1, 8: 0.4}))
    found = machine.run(monkeypatch, 100.0, (1, 8))
    assert found == {1: sequential_test.PASSED, 8: sequential_test.UNDECIDED}
    needed = sequential_test.needed(2)
    assert set(machine.timed[:needed]) == {(1, 8)} and set(machine.timed[needed:]) == {(8,)}
    assert [len(one.medians_ms) for one in machine.measured] == [2 * needed, 2 * len(machine.timed)]


def document(*medians: float, kind: str = "regress") -> dict[str, Any]:
    row = {"batch": 1, "seconds": 4.0}
    measured = row | ({"medians_ms": medians} if kind == "regress" else {"contenders": [{"medians_ms": medians}]})
    return {"kind": kind, "measurements": [measured], "settings": {"seconds": 20.0, "sittings": 10}}


def held_against(saved: dict[str, Any], monkeypatch: pytest.MonkeyPatch, ratio: float = 1.0) -> Any:
    """The gate, and the seconds that the sittings had at each size."""
    had: dict[str, Any] = {}

    def held(rivals: Any, sizes: Any, count: int, seconds: float, *_: Any, **__: Any) -> dict[int, timing.Timings]:
        had.update(count=count, seconds=seconds)
        samples = {"candidate": np.full(5 * count, 0.01 * ratio)}
        return {size: timing.Timings(samples, {"candidate": 1}, 0, (5,) * count) for size in sizes}

    monkeypatch.setattr(sittings, "sittings", held)
    candidate = contenders.Contender("candidate", "engine", "", (), lambda arrays: arrays, lambda: None)  # type: ignore[arg-type, return-value]
    (found,), _ = against_saved(
        Baseline("run.json", {}, document=saved), candidate, Terms((1,), 1, 300.0, 0.03, 0), Stages()
    )
    return found, had


@pytest.mark.parametrize(("kind", "seconds"), [("bench", 20.0), ("regress", 4.0)])
def test_a_saved_result_is_timed_for_as_long_as_it_was_taken(
    kind: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, had = held_against(document(*[10.0] * 10, kind=kind), monkeypatch)
    assert had == {"count": 10, "seconds": pytest.approx(seconds)} and found.verdict == sequential_test.PASSED
    found, _ = held_against(document(*[10.0] * 10, kind=kind), monkeypatch, 1.05)
    assert found.verdict == sequential_test.REGRESSED and found.name == LATENCY


@pytest.mark.parametrize("medians", [(), (10.0, 0.0), (10.0, -1.0), (math.nan,), (math.inf,)])
def test_saved_times_that_are_none_are_refused(medians: tuple[float, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"--baseline run.json: has no times at batch 1: measure it again"):
        held_against(document(*medians), monkeypatch)


def test_one_saved_sitting_decides_nothing_and_tells_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = held_against(document(10.0), monkeypatch, 1.5)
    assert (found.verdict, found.change) == (sequential_test.UNDECIDED, None)
    said = outcome.sentence(asdict(found) | {"label": found.label})
    assert said == "latency, batch 1: undecided: 10 ms -> 15 ms, no interval yet, limit 3%"
