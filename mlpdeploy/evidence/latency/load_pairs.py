"""Two engines timed in pairs of loads: both loaded anew and run in turns, once the one first and once the other.

Which engine is loaded first matters: the second finds other memory, and was up to 4 % slower or faster for as long as
it lived. Within a pair of loads most of that cancels. Which of the two orders comes first in a pair matters as well, by
half as much: of two neighbouring pairs one has them the other way round (see `sittings.backwards`), so that with the
names exchanged the pairs would be the same. Calls that another process interrupted lie in the upper part of the
samples, so the lower quartile stands for a load.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from mlpdeploy.evidence.latency.clocks import Inputs, timed
from mlpdeploy.evidence.latency.contenders import Contender, prepared
from mlpdeploy.evidence.latency.sittings import backwards
from mlpdeploy.evidence.latency.time_budget import Cost

ROUNDS, SHORTEST = 100, 5e-4
"""Rounds of a load at the most, and seconds of a sample at the least: short ones pass between interruptions."""


@dataclass(frozen=True)
class Load:
    """Seconds a call of one engine as it was loaded once."""

    median: float
    quartile: float


@dataclass(frozen=True)
class LoadPair:
    """Both sides in the two loads of a pair, at one batch size."""

    batch: int
    baseline: tuple[Load, Load]
    candidate: tuple[Load, Load]

    @property
    def log_ratios(self) -> tuple[float, float]:
        """Of either load, above zero where the candidate took longer."""
        first, second = (math.log(c.quartile / b.quartile) for b, c in zip(self.baseline, self.candidate, strict=True))
        return first, second

    @property
    def log_ratio(self) -> float:
        """The mean of both loads."""
        return sum(self.log_ratios) / 2


def trial(baseline: Contender, candidate: Contender, sizes: Sequence[int], seed: int) -> Cost:
    """What a load costs: of two, the second, since the first meets libraries that are not in memory yet."""
    sides = (baseline, candidate)
    inputs = {size: Inputs(prepared(sides, size, seed)) for size in sizes}
    for order in (sides, sides[::-1]):
        _, cost = _load(order, inputs, dict.fromkeys(sizes, 0.0), seed)
    return cost


def pairs(
    baseline: Contender, candidate: Contender, seconds: Mapping[int, float], seed: int
) -> Iterator[tuple[LoadPair, ...]]:
    """Pairs without end, one for each batch size of `seconds`, which says for about how long each load is timed at it.

    A size that is taken out of `seconds` is not timed any more.
    """
    sides = (baseline, candidate)
    inputs = {size: Inputs(prepared(sides, size, seed)) for size in seconds}
    for turn in itertools.count():
        (first, _), (second, _) = (
            _load(sides[::-1] if backwards(load) else sides, inputs, seconds, seed + load)
            for load in (2 * turn, 2 * turn + 1)
        )
        yield tuple(
            LoadPair(size, *((first[size][one.name], second[size][one.name]) for one in sides)) for size in first
        )


def _load(
    order: Sequence[Contender],
    inputs: Mapping[int, Inputs],
    seconds: Mapping[int, float],
    seed: int,
) -> tuple[dict[int, dict[str, Load]], Cost]:
    """Load both sides in this order, warm them up in it and time them, by size and name; and what it cost."""
    found, spent, began = {}, {}, time.perf_counter()
    with ExitStack() as stack:
        calls = {one.name: stack.enter_context(one.load()) for one in order}
        for size, budget in seconds.items():
            start = time.perf_counter()
            taken = timed(calls, inputs[size], rounds=ROUNDS, seconds=budget, seed=seed, shortest=SHORTEST)
            quantiles = {name: np.quantile(samples, (0.5, 0.25)) for name, samples in taken.seconds.items()}
            found[size] = {name: Load(float(median), float(low)) for name, (median, low) in quantiles.items()}
            spent[size] = time.perf_counter() - start
    return found, Cost(time.perf_counter() - began - sum(spent.values()), spent)
