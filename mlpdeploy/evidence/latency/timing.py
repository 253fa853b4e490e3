"""Latency: contenders take turns, in random order, and are judged by the ratio to a baseline.

A contender that runs on a GPU brings the GPU's own clock (`Phased`), which tells the copies from the computing.

Two programs timed one after the other meet two different machines: clocks, caches and neighbours drift. Interleaved
round by round they meet the same one, and the ratio within rounds is what the bootstrap resamples.

Two loads of one engine differ as well, by a few per cent for as long as they live: where their weights lie in memory
decides it. So a measurement has several sittings, each with everything loaded anew, and the bootstrap resamples
sittings first, then the rounds within each. The intervals are widened by what few sittings cannot tell (Student's t).
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from statistics import NormalDist
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mlpdeploy.evidence.latency.collector import no_collector


@dataclass(frozen=True)
class Phases:
    """Seconds of a call on a GPU: copying inputs from host to device, computing, copying outputs back."""

    host_to_device: float
    compute: float
    device_to_host: float


@runtime_checkable
class Phased(Protocol):
    """A contender on a GPU, timed on the GPU's own clock; the others are timed on the host's, which is monotonic."""

    def phases(self, value: Any) -> Phases:
        """Copy an input in, compute, copy the outputs out; and how long each took."""


@runtime_checkable
class Timekeeper(Protocol):
    """A contender that times itself on the host's clock: one in another process, of which only the answer is here."""

    def seconds(self, value: Any, calls: int) -> float:
        """Of a call with an input, the mean of so many."""


TimedRun = Callable[[Any], object] | Phased | Timekeeper


PAIRED = 6
"""Sittings from which on two in opposite orders count as one: fewer pairs would tell less than what they cancel."""

MOST_WARMUP = 10
"""Calls after which a contender that is not stable is measured all the same: the machine is not quiet."""

FASTER, SLOWER, UNDECIDED = "faster", "slower", "undecided"


@dataclass(frozen=True)
class Latency:
    """Seconds a call, over the rounds."""

    median: float
    p90: float
    p99: float
    samples: int


@dataclass(frozen=True)
class Ratio:
    """Median latency over the baseline's, with its 95 % bootstrap interval; below 1 is faster."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`faster` or `slower` where the whole interval says so, else `undecided`."""
        if self.high < 1:
            return FASTER
        return SLOWER if self.low > 1 else UNDECIDED


@dataclass(frozen=True)
class Timings:
    """The samples of every contender (seconds a call, one a round, rounds aligned) and how they were taken.

    `sittings` has the rounds of each sitting, in order; empty where all were taken in one. Of contenders on a GPU's
    clock `seconds` are those of the computing, `phases` (rounds, 3) has all that `Phases` names, and `uncaptured` says
    why each was no CUDA graph ("" where it was one). `host_clock` is why the host's clock had to do for a GPU ("" where
    it had not).
    """

    seconds: dict[str, np.ndarray]
    calls: dict[str, int]
    seed: int
    sittings: tuple[int, ...] = ()
    phases: dict[str, np.ndarray] = field(default_factory=dict)
    uncaptured: Mapping[str, str] = field(default_factory=dict)
    host_clock: str = ""

    @classmethod
    def joined(cls, taken: Sequence[Timings]) -> Timings:
        """Several sittings with the same contenders as one measurement."""
        names, first = list(taken[0].seconds), taken[0]
        seconds = {name: np.concatenate([one.seconds[name] for one in taken]) for name in names}
        phases = {name: np.concatenate([one.phases[name] for one in taken]) for name in first.phases}
        rounds = tuple(len(one.seconds[names[0]]) for one in taken)
        return cls(seconds, first.calls, first.seed, rounds, phases, first.uncaptured, first.host_clock)

    def latency(self, name: str) -> Latency:
        """Median and tail of one contender."""
        median, p90, p99 = np.percentile(self.seconds[name], (50, 90, 99))
        return Latency(float(median), float(p90), float(p99), len(self.seconds[name]))

    def phases_of(self, name: str) -> Phases | None:
        """The median of each phase of one contender; None where it was timed on the host's clock."""
        return Phases(*map(float, np.median(self.phases[name], axis=0))) if name in self.phases else None

    def end_to_end(self, name: str) -> float:
        """The median of a call with its copies, which follow each other on one stream."""
        return float(np.median(self.phases[name].sum(axis=1) if name in self.phases else self.seconds[name]))

    def medians(self, name: str) -> list[float]:
        """The median of each sitting, seconds."""
        return [float(np.median(part)) for part in self._split(name)]

    def ratio(self, name: str, baseline: str, resamples: int = 2000) -> Ratio:
        """The ratio of medians within a sitting, geometric mean over the sittings.

        Rounds are resampled within each sitting, together for both contenders, so that what both suffered cancels; then
        the sittings are. Neighbouring sittings, which load in opposite orders, count as one from PAIRED on.
        """
        rng = np.random.default_rng(self.seed)
        values, drawn = [], []
        for mine, other in zip(self._split(name), self._split(baseline), strict=True):
            rows = rng.integers(0, len(mine), (resamples, len(mine)))
            drawn.append(np.log(np.median(mine[rows], axis=1) / np.median(other[rows], axis=1)))
            values.append(math.log(np.median(mine) / np.median(other)))
        middle, logs = sum(values) / len(values), np.stack(drawn, axis=1)
        if len(values) >= PAIRED and len(values) % 2 == 0:
            logs = (logs[:, ::2] + logs[:, 1::2]) / 2
        count = logs.shape[1]
        means = np.take_along_axis(logs, rng.integers(0, count, (resamples, count)), axis=1).mean(axis=1)
        low, high = middle + _widening(count) * (np.percentile(means, (2.5, 97.5)) - middle)
        return Ratio(math.exp(middle), math.exp(low), math.exp(high))

    def _split(self, name: str) -> list[np.ndarray]:
        return np.split(self.seconds[name], np.cumsum(self.sittings)[:-1]) if self.sittings else [self.seconds[name]]

    def to_json(self, baseline: str | None = None) -> dict[str, dict[str, Any]]:
        """By contender: its latency in milliseconds, and its ratio to the baseline with the verdict."""
        table: dict[str, dict[str, Any]] = {}
        for name in self.seconds:
            latency = self.latency(name)
            row: dict[str, Any] = {
                "median_ms": 1e3 * latency.median,
                "p90_ms": 1e3 * latency.p90,
                "p99_ms": 1e3 * latency.p99,
                "rounds": latency.samples,
                "calls_a_round": self.calls[name],
            }
            if baseline is not None and name != baseline:
                ratio = self.ratio(name, baseline)
                row["ratio"] = {**asdict(ratio), "baseline": baseline, "verdict": ratio.verdict}
            table[name] = row
        return table


def measure(
    contenders: Mapping[str, TimedRun],
    inputs: Sequence[Any],
    *,
    rounds: int = 30,
    seconds: float | None = None,
    warmup: int = 3,
    shortest: float = 2e-3,
    seed: int = 0,
    least: int = 5,
) -> Timings:
    """Time each contender once a round, in an order drawn anew for each round.

    `inputs` are rotated, the same one for all contenders of a round. A sample is as many calls as last `shortest`
    seconds, so the clock's own grain does not show; of a `Phased` contender it is one call. Before the first, at least
    `warmup` calls, and more until they are stable. `seconds` is a budget for the whole measurement: the rounds end when
    it is spent, but never before `least`.
    Raises ValueError without contenders or inputs, and where only some contenders are `Phased`.
    """
    if not contenders or not inputs or rounds < 1:
        raise ValueError("timing needs at least one contender, one input and one round")
    phased = any(isinstance(run, Phased) for run in contenders.values())
    if phased and not all(isinstance(run, Phased) for run in contenders.values()):
        raise ValueError("times on a GPU's clock and on the host's cannot be held against each other")
    rng = np.random.default_rng(seed)
    names = list(contenders)
    began = time.perf_counter()
    calls = {name: _calls(contenders[name], inputs, warmup, shortest) for name in names}
    samples: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    with no_collector():
        for turn in range(rounds):
            if seconds is not None and turn >= least and time.perf_counter() - began > seconds:
                break
            value = inputs[turn % len(inputs)]
            for name in rng.permutation(names):
                samples[name].append(_time(contenders[name], value, calls[name]))
    columns = {name: np.array(values) for name, values in samples.items()}
    compared = {name: values[:, _COMPUTE if phased else 0] for name, values in columns.items()}
    return Timings(compared, calls, seed, phases=columns if phased else {})


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[tuple[int, ...]]:
    """Hold this thread, and the threads it starts, to `threads` cores; yields the cores (empty where unsupported).

    Enter it before an engine is loaded: a thread pool keeps the cores that its creator had. Raises ValueError where
    fewer cores are allowed than asked for.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield ()
        return
    before = os.sched_getaffinity(0)
    if not 1 <= threads <= len(before):
        raise ValueError(f"{threads} threads were asked for, this process may use {len(before)} cores")
    cores = tuple(sorted(before)[:threads])
    os.sched_setaffinity(0, cores)
    try:
        yield cores
    finally:
        os.sched_setaffinity(0, before)


def _widening(sittings: int) -> float:
    """How much wider an interval over few sittings must be than the bootstrap makes it; 1 where there is only one.

    The bootstrap takes the spread of n values for that of their population (short by sqrt((n - 1) / n)) and as known,
    where Student's t with n - 1 degrees of freedom is due. The quantile of t is Cornish and Fisher's expansion.
    """
    if sittings < 2:
        return 1.0
    z, degrees = NormalDist().inv_cdf(0.975), sittings - 1
    t = z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    t = _STUDENT.get(degrees, t)
    return math.sqrt(sittings / degrees) * t / z


_STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
"""The 97.5 % quantile of Student's t by degrees of freedom, where the expansion is too short."""

_COMPUTE = 1  # the place of `compute` in Phases


def _calls(run: TimedRun, inputs: Sequence[Any], warmup: int, shortest: float) -> int:
    """Warm up, until the last calls differ by less than a tenth, and find how many calls last `shortest` seconds."""
    taken: list[float] = []
    while len(taken) < max(1, warmup) or (len(taken) < MOST_WARMUP and not _stable(taken)):
        taken.append(sum(_time(run, inputs[len(taken) % len(inputs)], 1)))
    return 1 if isinstance(run, Phased) else max(1, math.ceil(shortest / max(min(taken), 1e-9)))


def _stable(taken: Sequence[float]) -> bool:
    """Whether the last three calls lie within a tenth of the best so far."""
    return len(taken) < 3 or max(taken[-3:]) < 1.1 * min(taken)


def _time(run: TimedRun, value: Any, calls: int) -> tuple[float, ...]:
    """Seconds of a call on the host's clock, or of each phase of one call on a GPU's."""
    if isinstance(run, Phased):
        return astuple(run.phases(value))
    if isinstance(run, Timekeeper):
        return (run.seconds(value, calls),)
    began = time.perf_counter_ns()
    for _ in range(calls):
        run(value)
    return ((time.perf_counter_ns() - began) / calls * 1e-9,)
