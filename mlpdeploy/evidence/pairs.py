"""Two engines timed pair by pair: both loaded anew, in an order that alternates, and run in turns (see gate.py)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from mlpdeploy.evidence import timing
from mlpdeploy.evidence.contenders import Contender, fed, prepared

ROUNDS = 20
"""Rounds of a pair at the most."""


@dataclass(frozen=True)
class Pair:
    """The medians of one pair at one batch size, in seconds."""

    batch: int
    baseline: float
    candidate: float

    @property
    def log_ratio(self) -> float:
        """Above zero where the candidate took longer."""
        return math.log(self.candidate / self.baseline)


def pairs(
    baseline: Contender, candidate: Contender, sizes: Sequence[int], seconds: float, seed: int
) -> Iterator[tuple[Pair, ...]]:
    """Pairs without end, one for each batch size of a load; each load is timed for about `seconds` a size."""
    sides = [baseline, candidate]
    inputs = {size: prepared(sides, size, seed) for size in sizes}
    turn = 0
    while True:
        with ExitStack() as stack:
            order = sides if turn % 2 == 0 else sides[::-1]
            calls = {one.name: stack.enter_context(one.load()) for one in order}
            found = []
            for size in sizes:
                runs = {one.name: fed(calls[one.name], inputs[size][one.name]) for one in sides}
                turns = range(len(inputs[size][baseline.name]))
                taken = timing.measure(runs, turns, rounds=ROUNDS, seconds=seconds, seed=seed + turn)
                found.append(Pair(size, *(float(np.median(taken.seconds[one.name])) for one in sides)))
        yield tuple(found)
        turn += 1
