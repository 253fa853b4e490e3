"""How a search judges a candidate against the best so far: by time, or where nothing can run, by structure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mlpdeploy.artifact.decisions import KEPT, NO_BETTER, UNDECIDED, Ratio
from mlpdeploy.engine.backend import Backend
from mlpdeploy.errors import MachineLacks
from mlpdeploy.search.variants import Variant, Workshop

if TYPE_CHECKING:
    from mlpdeploy.evidence.latency.contenders import Contender
    from mlpdeploy.evidence.latency.sequential_test import Slowdown

LEAST = 6
"""Pairs after which a candidate is given up that has not been faster: to give up is no error that adds up."""
LOOKS = 4
"""Of the looks of the sequential test, the first ones: what takes longer to tell is not worth the time."""
WORTH = 0.01
"""What a change must save at the least, as far as can be told, to be looked at any longer."""
COUNTS = {"launches": "total", "copies": "copies", "transposes": "transposes", "bytes": "bytes_moved"}


@dataclass(frozen=True)
class Judgement:
    """A verdict of `decisions`, with the ratio of times, or why in words."""

    verdict: str
    ratio: Ratio | None = None
    pairs: int = 0
    why: str = ""


class Judge(Protocol):
    """Holds candidates against the best so far."""

    def glance(self, incumbent: Variant, candidate: Variant) -> float:
        """About how much better a candidate looks, as a logarithm: below zero is better."""

    def decide(self, incumbent: Variant, candidate: Variant, end: float, clock: Callable[[], float]) -> Judgement:
        """Whether it is better, found before the clock shows `end`."""


def by_time(shop: Workshop, tests: int) -> Judge:
    """Times in pairs of loads, judged as the gate of `regress` does; `tests` verdicts share the error."""
    return _Time(shop, tests)


def by_structure(backend: Backend) -> Judge:
    """What the engine launches, copies, transposes and moves: better where none is more and one is less."""
    return _Structure(backend)


class _Time:
    def __init__(self, shop: Workshop, tests: int) -> None:
        self.shop, self.tests = shop, max(1, tests)
        self.size, self.seed = shop.selection.profile.opt, shop.selection.seed

    def glance(self, incumbent: Variant, candidate: Variant) -> float:
        from mlpdeploy.evidence.latency import load_pairs

        sides = self._contender("incumbent", incumbent), self._contender("candidate", candidate)
        (pair,) = next(load_pairs.pairs(*sides, {self.size: 0.0}, self.seed))
        return pair.log_ratio

    def decide(self, incumbent: Variant, candidate: Variant, end: float, clock: Callable[[], float]) -> Judgement:
        from mlpdeploy.evidence.latency import load_pairs, sequential_test

        sides = self._contender("incumbent", incumbent), self._contender("candidate", candidate)
        logs, looks = list[float](), sequential_test.LOOKS[:LOOKS]
        for (pair,) in load_pairs.pairs(*sides, {self.size: 0.0}, self.seed + 1):
            logs.append(pair.log_ratio)
            over = clock() > end or len(logs) == looks[-1]
            if len(logs) % 2 and not over:
                continue
            found = sequential_test.judge(logs[: max(1, len(logs) // 2 * 2)], 0.0, self.tests, LOOKS)
            if len(logs) in looks and found.verdict == sequential_test.PASSED:
                return _judgement(KEPT, found)
            if (len(logs) >= LEAST and found.value >= 0) or found.low > -WORTH:
                return _judgement(NO_BETTER, found)
            if over:
                return _judgement(UNDECIDED, found)
        raise AssertionError("pairs have no end")

    def _contender(self, name: str, variant: Variant) -> Contender:
        from mlpdeploy.evidence.latency import contenders

        return contenders.engine(name, "engine", name, variant.engine, self.shop.traced.inputs)


def _judgement(verdict: str, found: Slowdown) -> Judgement:
    low, high = (1 + bound if -1 < bound < math.inf else None for bound in (found.low, found.high))
    return Judgement(verdict, Ratio(1 + found.value, low, high), found.pairs)


class _Structure:
    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def glance(self, incumbent: Variant, candidate: Variant) -> float:
        return sum((after - before) / max(1.0, before) for before, after in self._counts(incumbent, candidate).values())

    def decide(self, incumbent: Variant, candidate: Variant, end: float, clock: Callable[[], float]) -> Judgement:
        changed = {name: pair for name, pair in self._counts(incumbent, candidate).items() if pair[0] != pair[1]}
        why = ", ".join(f"{name} {before:.0f} -> {after:.0f}" for name, (before, after) in changed.items())
        better = bool(changed) and all(after < before for before, after in changed.values())
        return Judgement(KEPT if better else NO_BETTER, why=why or "it launches and moves the same")

    def _counts(self, *variants: Variant) -> dict[str, tuple[float, float]]:
        """By name, what both tell."""
        told = [variant.engine.facts.get("launches") for variant in variants]
        if None in told:
            reason = self.backend.executable()
            raise MachineLacks(
                f"nothing can be searched for {self.backend.name}: its engines do not run here ({reason}), and do not "
                "tell what they launch"
            )
        before, after = ({name: one.get(key) for name, key in COUNTS.items()} for one in told if one is not None)
        return {name: (before[name], after[name]) for name in COUNTS if None not in (before[name], after[name])}
