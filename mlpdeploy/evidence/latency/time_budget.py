"""How long pairs of loads are timed, so that the seconds that may be spent are spent on a verdict.

Loading both sides and warming them up takes time, whatever is timed afterwards. A load that is timed for as long again
as it takes at the least is never worse than half as good as the best split of the time, whether the loads differ more
or the rounds within them: with variances a of a load and b of a second, a pair of overhead t costs (a + b/s)(t + s),
which at s = t is 2(at + b), and at its best (sqrt(at) + sqrt(b)) squared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

WANTED = 28
"""Pairs that the seconds are to hold, where loads that are timed for longer would leave no room for them."""


@dataclass(frozen=True)
class Cost:
    """Seconds of a load of both sides that is timed for as short as it can be: loading, and timing each batch size."""

    loading: float
    timing: Mapping[int, float]

    @property
    def least(self) -> float:
        """Seconds of the whole load."""
        return self.loading + sum(self.timing.values())


@dataclass(frozen=True)
class Schedule:
    """Seconds of each load at each batch size, its warm-up included, and those that a pair of loads takes.

    `needed` is how many pairs a verdict needs, `budget` the seconds that may be spent.
    """

    seconds: Mapping[int, float]
    pair: float
    needed: int
    budget: float

    @property
    def first(self) -> float:
        """Seconds until there can be a verdict."""
        return self.needed * self.pair

    @property
    def text(self) -> str:
        """What to expect, in words."""
        pairs = f"{self.needed} pairs of loads, which a verdict needs"
        if self.first > self.budget:
            return f"--time {self.budget:g} is too short for {pairs}: they take about {_seconds(self.first)}"
        return f"about {_seconds(self.first)} for {pairs}; at most {self.budget:g} s"


def plan(cost: Cost, budget: float, needed: int) -> Schedule:
    """As long as a load costs anyway, or what WANTED pairs leave room for; never less than it takes at the least."""
    more = min(max(budget / WANTED / 2 - cost.least, 0.0), cost.least)
    seconds = {size: least + more / len(cost.timing) for size, least in cost.timing.items()}
    return Schedule(seconds, 2 * (cost.least + more), needed, budget)


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 1 else "a second"
