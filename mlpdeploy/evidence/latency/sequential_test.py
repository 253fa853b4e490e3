"""A sequential test of a slowdown against a limit, whose error is known whatever the noise looks like.

Two loads of one engine differ by a few per cent for as long as they live, so rounds within one load say little about
the next. The unit here is a *pair* of loads (see pairs.py): both sides are loaded anew, once the one first and once the
other, and timed in turns; it gives one number, the logarithm of candidate over baseline. Every second pair has the two
orders the other way round, so that with the same engine on both sides and the names exchanged the pairs are the same
again: of an even number x is as likely as -x, by symmetry and not by any assumption about noise. A slowdown moves all
pairs by its logarithm. That is what Wilcoxon's signed-rank test asks for, which then errs as often as it says, or less;
its interval is had from the means of any two pairs (Walsh averages), and its estimate is their median (Hodges and
Lehmann, 1963). Outliers move neither far.

Looking several times would add up errors, so each look of LOOKS has an equal share of the error that is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

LOOKS = (10, 14, 20, 28, 40, 56, 80, 112)
"""Numbers of pairs at which the test is looked at, all even; after the last one it stays undecided."""

FALSE_ALARM = 0.01
"""How often a run may say `regressed` where the slowdown is at the limit or below."""

MISSED = 0.05
"""How often a run may say `passed` where the slowdown is at the limit or above."""

PASSED, REGRESSED, UNDECIDED = "passed", "regressed", "undecided"


@dataclass(frozen=True)
class Slowdown:
    """Candidate over baseline, minus one: 0.05 is 5 % slower. The interval is the test's own at this look."""

    value: float
    low: float
    high: float
    limit: float
    pairs: int

    @property
    def verdict(self) -> str:
        """`regressed` or `passed` where the whole interval lies beyond the limit, or below it; else `undecided`."""
        if self.low > self.limit:
            return REGRESSED
        return PASSED if self.high < self.limit else UNDECIDED


def judge(logs: Sequence[float] | np.ndarray, limit: float, tests: int = 1, looks: int = len(LOOKS)) -> Slowdown:
    """The slowdown that the pairs' log ratios show, with its interval at one of `looks` looks.

    `tests` gates that are judged in one run share the errors. Raises ValueError without pairs.
    """
    count = len(logs)
    if count == 0:
        raise ValueError("a slowdown needs at least one pair")
    averages = _walsh(np.asarray(logs, dtype=np.float64))
    low = _rank(count, FALSE_ALARM / looks / tests)
    high = _rank(count, MISSED / looks / tests)
    return Slowdown(
        value=math.expm1(float(np.median(averages))),
        low=math.expm1(averages[low - 1]) if low else -1.0,
        high=math.expm1(averages[-high]) if high else math.inf,
        limit=limit,
        pairs=count,
    )


def needed(tests: int = 1) -> int:
    """The first look at which both verdicts can be had; fewer pairs decide nothing, whatever they show."""
    errors = (FALSE_ALARM / len(LOOKS) / tests, MISSED / len(LOOKS) / tests)
    return next((look for look in LOOKS if all(_rank(look, error) for error in errors)), LOOKS[-1])


def run(logs: Sequence[float] | np.ndarray, limit: float, tests: int = 1) -> Slowdown:
    """What a run would say that met these pairs one after the other: it stops at the first look that decides."""
    found = judge(logs[: LOOKS[0]], limit, tests)
    for look in LOOKS[1:]:
        if found.verdict != UNDECIDED or len(logs) < look:
            return found
        found = judge(logs[:look], limit, tests)
    return found


def _walsh(values: np.ndarray) -> np.ndarray:
    """The means of any two values, each with itself too, ascending."""
    rows, columns = np.triu_indices(len(values))
    return np.sort((values[rows] + values[columns]) / 2)


@cache
def _rank(count: int, error: float) -> int:
    """Which Walsh average bounds the centre from below with that error at most; 0 where `count` pairs are too few.

    The signed-rank statistic of `count` values is a sum over ranks, each in or out with probability one half.
    """
    ways = np.zeros(count * (count + 1) // 2 + 1)
    ways[0] = 1.0
    for rank in range(1, count + 1):
        ways[rank:] = (ways[rank:] + ways[: len(ways) - rank]) / 2
        ways[:rank] /= 2
    return int(np.searchsorted(np.cumsum(ways), error, side="right"))
