"""The latency gates of `mlpdeploy regress`: both sides in pairs until it is decided, or one beside saved times."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from mlpdeploy.artifact.lookup import backend_of
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.commands.baseline import Baseline
from mlpdeploy.commands.interpreter import own
from mlpdeploy.engine.backend import Backend
from mlpdeploy.errors import InputError, MachineLacks
from mlpdeploy.progress import Stages
from mlpdeploy.selection import Selection
from mlpdeploy.stages import load
from mlpdeploy.system.leftovers import workplace

if TYPE_CHECKING:
    from mlpdeploy.evidence.documents.regress import BothSides, Gate
    from mlpdeploy.evidence.latency.contenders import Contender, Loadable
    from mlpdeploy.evidence.latency.elsewhere import Place
    from mlpdeploy.evidence.latency.load_pairs import LoadPair
    from mlpdeploy.evidence.latency.sequential_test import Slowdown

Found = tuple[tuple["Gate", ...], tuple["BothSides", ...]]
"""The gates, one for each batch size, and the times that they were judged on."""


@dataclass(frozen=True)
class Terms:
    """The batch sizes to time, the threads, the seconds for all of it, and how much slower the candidate may be."""

    sizes: Sequence[int]
    threads: int
    seconds: float
    limit: float
    seed: int


def latency(other: Baseline, artifact: Artifact, selection: Selection, terms: Terms, stages: Stages) -> Found:
    """The latency gates; without an engine that runs here, why not. Raises InputError or MachineLacks."""
    from mlpdeploy.evidence.documents import regress

    backend = backend_of(artifact)
    reason = backend.executable()
    if reason is not None:
        gates = (regress.not_measured(regress.LATENCY, "ms", terms.limit, reason, size) for size in terms.sizes)
        return tuple(gates), ()
    specs = load(selection, stages).with_images(selection).specs()
    if other.artifact is None:
        candidate = _contender("candidate", artifact, backend, specs, terms.threads)
        return against_saved(other, candidate, terms, stages)
    profile = other.artifact.manifest["batch"]
    outside = [size for size in terms.sizes if not profile["min"] <= size <= profile["max"]]
    if outside:
        raise InputError(f"{other.called}: was built for batch {profile['min']} to {profile['max']}, not {outside[0]}")
    if other.interpreter is not None:
        places = {"baseline": other.interpreter.place, "candidate": own()}
        return _apart(places, (other.artifact, artifact), specs, terms, stages)
    their_backend = backend_of(other.artifact)
    if (reason := their_backend.executable()) is not None:
        raise MachineLacks(f"{other.called}: cannot run on this machine: {reason}")
    candidate = _contender("candidate", artifact, backend, specs, terms.threads)
    baseline = _contender("baseline", other.artifact, their_backend, specs, terms.threads)
    return interleaved(baseline, candidate, terms, stages)


def _apart(
    places: Mapping[str, Place], artifacts: Sequence[Artifact], specs: Sequence[Any], terms: Terms, stages: Stages
) -> Found:
    """Both sides in processes of their own, the baseline first, each by its interpreter."""
    with workplace() as folder:
        baseline, candidate = (
            place.contender(name, _loadable(artifact, backend_of(artifact), terms.threads), specs, folder)
            for (name, place), artifact in zip(places.items(), artifacts, strict=True)
        )
        return interleaved(baseline, candidate, terms, stages)


def interleaved(
    baseline: Contender,
    candidate: Contender,
    terms: Terms,
    stages: Stages,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Pairs until every size is decided, the last look is over, or the next pair would not fit into the time.

    As many pairs as a verdict needs are taken whatever the time, which is said beforehand: fewer decide nothing.
    """
    from mlpdeploy.evidence.latency import load_pairs, sequential_test, time_budget
    from mlpdeploy.evidence.latency.collector import settled

    began, judged = clock(), dict[int, sequential_test.Slowdown]()
    taken: dict[int, list[LoadPair]] = {size: [] for size in terms.sizes}
    with stages("time both sides"), settled():
        needed = sequential_test.needed(len(terms.sizes))
        plan = time_budget.plan(load_pairs.trial(baseline, candidate, terms.sizes, terms.seed), terms.seconds, needed)
        stages.say(plan.text)
        undecided, start = dict(plan.seconds), clock()
        for count, found in enumerate(load_pairs.pairs(baseline, candidate, undecided, terms.seed), 1):
            for pair in found:
                taken[pair.batch].append(pair)
            stages.step(f"pair {count} of {sequential_test.LOOKS[-1]} at most", count, sequential_test.LOOKS[-1])
            now = clock()
            latest, start = now - start, now
            if count < needed:
                continue
            last = count == sequential_test.LOOKS[-1] or now + latest - began > terms.seconds
            if last or count in sequential_test.LOOKS:
                for size in tuple(undecided):
                    logs = [pair.log_ratio for pair in taken[size]][: count - count % 2]
                    judged[size] = sequential_test.judge(logs, terms.limit, len(terms.sizes))
                    if judged[size].verdict != sequential_test.UNDECIDED:
                        del undecided[size]
            if last or not undecided:
                break
    sides = {}
    for size, of_size in taken.items():
        before = [load.median for pair in of_size for load in pair.baseline]
        after = [load.median for pair in of_size for load in pair.candidate]
        sides[size] = (before, after)
    most = sequential_test.LOOKS[-1]
    more = "--time gives it more" if count < most else "the most there are; a quieter machine tells more"
    return results(sides, judged, clock() - began, more)


def against_saved(other: Baseline, candidate: Contender, terms: Terms, stages: Stages) -> Found:
    """Sittings of the candidate alone against those of the saved result, in the order in which they were taken.

    Two sessions of one machine differ by more than a session does within itself: a saved result is the lesser baseline.
    """
    from mlpdeploy.evidence.latency import sequential_test
    from mlpdeploy.evidence.latency.sittings import sittings

    saved, sizes = _saved_medians(other), terms.sizes
    if missing := [size for size in sizes if size not in saved]:
        raise InputError(f"{other.called}: has no batch {missing[0]}, only {', '.join(map(str, saved))}")
    count = max(len(saved[size]) for size in sizes)
    began, seconds = time.monotonic(), min(terms.seconds / len(sizes), count * _sitting(other))
    with stages("time the engine"):
        stages.say(f"about {max(1, round(seconds * len(sizes)))} s for {count} sittings, as many as were saved")
        taken = sittings([candidate], sizes, count, seconds, terms.seed, stages, fewest=count)
    sides, judged = {}, {}
    for size in sizes:
        after = taken[size].medians(candidate.name)[: len(saved[size])]
        before = saved[size][: len(after)]
        sides[size] = (before, after)
        logs = [math.log(mine / theirs) for mine, theirs in zip(after, before, strict=True)]
        judged[size] = sequential_test.judge(logs, terms.limit, len(sizes), looks=1)
    more = "a saved result has only so many; git:REVISION or an artifact is measured until it is decided"
    return results(sides, judged, time.monotonic() - began, more)


def results(
    sides: Mapping[int, tuple[list[float], list[float]]],
    judged: Mapping[int, Slowdown],
    spent: float,
    more: str = "--time gives it more",
) -> Found:
    """Gates and measurements from the median of each load, seconds."""
    from mlpdeploy.evidence.documents import regress
    from mlpdeploy.evidence.latency import sequential_test

    gates, measurements = [], []
    for size, (before, after) in sides.items():
        found = judged[size]
        reason = f"undecided after {found.pairs} pairs: {more}" if found.verdict == sequential_test.UNDECIDED else ""
        gates.append(regress.latency_gate(size, found, 1e3 * median(before), 1e3 * median(after), reason))
        baseline_ms, medians_ms = (tuple(1e3 * second for second in side) for side in (before, after))
        measurements.append(regress.BothSides(size, baseline_ms, medians_ms, round(spent, 1)))
    return tuple(gates), tuple(measurements)


def _saved_medians(other: Baseline) -> dict[int, list[float]]:
    """Seconds of each sitting of the engine, or of each load of the candidate, by batch size.

    Raises InputError where one is no time that was measured.
    """
    from mlpdeploy.evidence.documents.bench import BENCH

    assert other.document is not None
    bench, found = other.document["kind"] == BENCH, {}
    for one in other.document["measurements"]:
        medians = (one["contenders"][0] if bench else one)["medians_ms"]
        if not medians or not all(0 < median < math.inf for median in medians):
            raise InputError(f"{other.called}: has no times at batch {one['batch']}: measure it again")
        found[one["batch"]] = [1e-3 * median for median in medians]
    return found


def _sitting(other: Baseline) -> float:
    """About the seconds that a sitting of a saved result took at one batch size."""
    from mlpdeploy.evidence.documents.bench import BENCH

    assert other.document is not None
    settings, measured = other.document["settings"], other.document["measurements"]
    if other.document["kind"] == BENCH:
        return float(settings["seconds"] / settings["sittings"])
    return float(max(one["seconds"] / len(one["medians_ms"]) for one in measured) / len(measured))


def _contender(name: str, artifact: Artifact, backend: Backend, specs: Sequence[Any], threads: int) -> Contender:
    from mlpdeploy.evidence.latency import contenders

    return contenders.engine(name, "engine", name, _loadable(artifact, backend, threads), specs)


def _loadable(artifact: Artifact, backend: Backend, threads: int) -> Loadable:
    from mlpdeploy.evidence.latency import contenders

    return contenders.Loadable(backend, artifact.engine, artifact.manifest["facts"]).on(threads)
