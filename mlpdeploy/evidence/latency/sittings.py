"""Contenders timed in sittings, each with everything loaded anew, within the seconds that there are for all of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from mlpdeploy.engine.backend import Progress
from mlpdeploy.evidence.latency import timing
from mlpdeploy.evidence.latency.clocks import Inputs, timed
from mlpdeploy.evidence.latency.collector import settled
from mlpdeploy.evidence.latency.contenders import Contender, prepared

MOST_ROUNDS = 10_000
FEWEST = 3
"""Sittings that are held whatever they take: an interval over fewer would be as wide as to say nothing."""


@dataclass
class Allowance:
    """The seconds that there are for all sittings, how many are wanted, and what those so far have cost.

    `whole` and `timed` are seconds of each sitting, all of it and what was left to timing. The first counts as the
    second did: what it alone has to do, such as compiling, is no part of the time for measuring.
    """

    seconds: float
    count: int
    fewest: int = FEWEST
    whole: list[float] = field(default_factory=list)
    timed: list[float] = field(default_factory=list)

    @property
    def next(self) -> float:
        """Seconds of timing in the next sitting, so that all of them find room; zero means as few as can be."""
        if len(self.whole) < 2:
            return self.seconds / self.count
        each = (self.seconds - self._spent) / max(1, self.count - len(self.whole))
        return max(0.0, each - (self.whole[-1] - self.timed[-1]))

    @property
    def over(self) -> bool:
        """Whether there is no room for another sitting, most of which would lie beyond the seconds."""
        held = len(self.whole)
        enough = held >= max(2, self.fewest) and self._spent + self.whole[-1] / 2 > self.seconds
        return held >= self.count or enough

    @property
    def _spent(self) -> float:
        return min(self.whole[:2]) + sum(self.whole[1:])


def backwards(turn: int) -> bool:
    """Whether what is loaded anew in each turn is loaded in reverse: 0 1 1 0 1 0 0 1 and so on (Thue and Morse).

    What a load finds in memory depends on what the load before it left behind, so one that always follows a certain
    other one is not like it with the names exchanged. In this sequence each order follows either as often.
    """
    return turn.bit_count() % 2 == 1


def sittings(
    contenders: Sequence[Contender],
    sizes: Sequence[int],
    count: int,
    seconds: float,
    seed: int,
    progress: Progress,
    *,
    fewest: int = FEWEST,
    clock: Callable[[], float] = time.monotonic,
) -> dict[int, timing.Timings]:
    """Time all contenders at each batch size in `count` sittings that share `seconds` for each size.

    Every sitting loads every contender anew, in order or backwards (see `backwards`). Loading and warming up are
    part of the seconds: where they leave no room for `count` sittings there are fewer, `fewest` at the least.
    """
    inputs = {size: Inputs(prepared(contenders, size, seed)) for size in sizes}
    taken: dict[int, list[timing.Timings]] = {size: [] for size in sizes}
    allowance = Allowance(seconds * len(sizes), count, fewest)
    with settled():
        while not allowance.over:
            sitting, began = len(allowance.whole), clock()
            with ExitStack() as stack:
                order = list(reversed(contenders)) if backwards(sitting) else contenders
                calls = {one.name: stack.enter_context(one.load()) for one in order}
                limits = {"rounds": MOST_ROUNDS, "seconds": allowance.next / len(sizes), "seed": seed + sitting}
                loaded = clock()
                for done, size in enumerate(sizes):
                    where = f"sitting {sitting + 1} of {count}, batch {size}"
                    progress.step(where, sitting * len(sizes) + done, count * len(sizes))
                    taken[size].append(timed(calls, inputs[size], **limits))
                allowance.timed.append(clock() - loaded)
            allowance.whole.append(clock() - began)
    return {size: timing.Timings.joined(one) for size, one in taken.items()}
