"""`mlpdeploy regress`, top to bottom: open the baseline, build the candidate, time both, compare what needs no time."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy import baseline as baselines
from mlpdeploy import files, pipeline, trust
from mlpdeploy.baseline import Baseline
from mlpdeploy.engine.backend import Backend, pick
from mlpdeploy.errors import InputError, MachineLacks
from mlpdeploy.lookup import backend_of
from mlpdeploy.progress import Listener, Stages
from mlpdeploy.selection import Selection
from mlpdeploy.session import covering, describe, held_to, thread_count
from mlpdeploy.store import Artifact

if TYPE_CHECKING:
    from mlpdeploy.evidence.contenders import Contender
    from mlpdeploy.evidence.facts import Facts
    from mlpdeploy.evidence.gate import Slowdown
    from mlpdeploy.evidence.pairs import Pair
    from mlpdeploy.evidence.regress import Gate, Latency, Limits, Regress

SECONDS = 300.0
BUILDS = 3
"""Builds of a candidate before its time counts as too long."""

PAIRS = 56
"""Pairs that the budget is meant to hold: their rounds are as many as that leaves time for."""


def regress(
    selection: Selection,
    reference: str,
    *,
    limits: Limits | None = None,
    sizes: Sequence[int] = (),
    threads: int | None = None,
    seconds: float = SECONDS,
    undecided: str = "fail",
    accepted: Collection[str] = (),
    data: str | None = None,
    trusted: bool = False,
    progress: Listener | None = None,
) -> Regress:
    """Hold the engine of a selection against a baseline (see `baseline`); `Regress.passed` says how it ended.

    `sizes` are the batch sizes to time (none: the smallest), `seconds` the time that may be spent on them together.
    `accepted` names gates that may get worse this time. `trusted` says that engines may run although somebody else
    built them (see `trust`). Both sides are verified where they are not, on the images of
    `data` or on random inputs. Raises InputError where something cannot be used, and MachineLacks where a saved result
    is of another machine.
    """
    from mlpdeploy.evidence import machine, regress

    stages, limits = Stages(progress), limits or regress.Limits()
    regress.accept((), accepted)
    if undecided not in ("pass", "fail"):
        raise InputError(f"--undecided {undecided}: give pass or fail")
    backend = pick(selection.backend, selection.precision, selection.gpus)
    threads = thread_count(threads)
    selection = covering(selection.with_backend(backend.name), sizes)
    sizes = list(dict.fromkeys(sizes)) or [selection.profile.min]
    before = machine.conditions()
    verify = [] if data is None else ["--data", str(Path(data).resolve()) if Path(data).exists() else data]
    with baselines.opened(reference, selection, verify, stages) as other:
        if other.document is not None:
            _require_same_machine(other)
        artifact = pipeline.build(selection, progress=progress)
        for one in filter(None, (artifact, other.artifact)):
            trust.require(one, backend_of(one), trusted)
        facts = _verified(selection, artifact, data, progress)
        theirs = _facts_of_baseline(other)
        facts = _built_again(selection, facts, theirs, limits, progress)
        with held_to(threads):
            gates, measurements = _latency(other, artifact, selection, sizes, threads, seconds, limits, stages)
    judged = (*gates, *regress.fact_gates(theirs, facts, limits))
    return regress.Regress(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        network=describe(artifact),
        selection=artifact.manifest["selection"],
        machine=machine.fingerprint(),
        conditions={"before": before, "after": machine.conditions()},
        settings={"threads": threads, "seconds": seconds, "seed": selection.seed},
        baseline=other.described,
        facts=facts,
        baseline_facts=theirs,
        gates=regress.accept(judged, accepted),
        measurements=measurements,
        undecided=undecided,
    )


def _require_same_machine(other: Baseline) -> None:
    """Times of another machine say nothing about this one. Raises MachineLacks that names what differs."""
    from mlpdeploy.evidence import machine

    assert other.document is not None
    differ = machine.differences(machine.fingerprint(), other.document["machine"])
    if differ:
        raise MachineLacks(
            f"--baseline {other.reference}: was measured on another machine or with other versions "
            f"({'; '.join(differ)}): give an artifact or git:REVISION, which is measured here"
        )


def _verified(selection: Selection, artifact: Artifact, data: str | None, progress: Listener | None) -> Facts:
    """The facts of the candidate, verified first where nothing says how accurate these files are."""
    from mlpdeploy.evidence.facts import accuracy_of, facts_of

    known = accuracy_of(artifact)
    if isinstance(known, str) or (data is not None and known.inputs != "images"):
        pipeline.verify(selection, data=data, progress=progress)
    return facts_of(artifact)


def _facts_of_baseline(other: Baseline) -> Facts:
    """What is known of the baseline; the time of its build only where it was built in this session."""
    from mlpdeploy.evidence.facts import Facts, facts_of
    from mlpdeploy.evidence.regress import BUILD

    if other.artifact is not None:
        found = facts_of(other.artifact)
    else:
        assert other.document is not None
        found = Facts.from_json(other.document["facts"])
    if other.described["kind"] == "git":
        return found
    why = "the baseline was built in another session; git:REVISION is built in this one"
    return replace(found, build_seconds=None, reasons={**found.reasons, BUILD: why})


def _built_again(selection: Selection, facts: Facts, theirs: Facts, limits: Limits, progress: Listener | None) -> Facts:
    """The candidate's facts; where its build took too long, with the best of a few: one may have met a busy time."""
    for _ in range(BUILDS - 1):
        longest = None if theirs.build_seconds is None else theirs.build_seconds * (1 + limits.build)
        if longest is None or facts.build_seconds is None or facts.build_seconds <= longest:
            break
        with files.temporary_folder() as folder:
            again = pipeline.build(replace(selection, out=folder), force=True, progress=progress)
            facts = replace(facts, build_seconds=min(facts.build_seconds, again.manifest["facts"]["build_seconds"]))
    return facts


def _latency(
    other: Baseline,
    artifact: Artifact,
    selection: Selection,
    sizes: Sequence[int],
    threads: int,
    seconds: float,
    limits: Limits,
    stages: Stages,
) -> tuple[tuple[Gate, ...], tuple[Latency, ...]]:
    """The latency gates, and the pairs that they were judged on; without an engine that runs here, why not."""
    from mlpdeploy.evidence import regress

    backend = backend_of(artifact)
    reason = backend.executable()
    if reason is not None:
        gates = (regress.not_measured(regress.LATENCY, "ms", limits.slowdown, reason, size) for size in sizes)
        return tuple(gates), ()
    specs = pipeline.load(selection, stages).specs()
    candidate = _contender("candidate", artifact, backend, specs, threads)
    if other.artifact is None:
        return _against_saved(other, candidate, sizes, seconds, limits, selection.seed, stages)
    profile = other.artifact.manifest["batch"]
    outside = [size for size in sizes if not profile["min"] <= size <= profile["max"]]
    if outside:
        raise InputError(
            f"--baseline {other.reference}: was built for batch {profile['min']} to {profile['max']}, not {outside[0]}"
        )
    their_backend = backend_of(other.artifact)
    if (reason := their_backend.executable()) is not None:
        raise MachineLacks(f"--baseline {other.reference}: cannot run on this machine: {reason}")
    baseline = _contender("baseline", other.artifact, their_backend, specs, threads)
    return _interleaved(baseline, candidate, sizes, seconds, limits, selection.seed, stages)


def _interleaved(
    baseline: Contender,
    candidate: Contender,
    sizes: Sequence[int],
    seconds: float,
    limits: Limits,
    seed: int,
    stages: Stages,
) -> tuple[tuple[Gate, ...], tuple[Latency, ...]]:
    """Pairs until every size is decided, the time is spent, or the last look is over."""
    from mlpdeploy.evidence import gate, pairs

    began, judged = time.monotonic(), dict[int, gate.Slowdown]()
    taken: dict[int, list[Pair]] = {size: [] for size in sizes}
    each = seconds / PAIRS / 2 / len(sizes)
    with stages("time both sides"):
        for count, found in enumerate(pairs.pairs(baseline, candidate, sizes, each, seed), 1):
            for pair in found:
                taken[pair.batch].append(pair)
            stages.step(f"pair {count} of {gate.LOOKS[-1]} at most", count, gate.LOOKS[-1])
            last = time.monotonic() - began > seconds or count == gate.LOOKS[-1]
            if last or count in gate.LOOKS:
                open_sizes = [s for s in sizes if s not in judged or judged[s].verdict == gate.UNDECIDED]
                for size in open_sizes:
                    logs = [pair.log_ratio for pair in taken[size]]
                    judged[size] = gate.judge(logs, limits.slowdown, len(sizes))
            if last or (judged and all(one.verdict != gate.UNDECIDED for one in judged.values())):
                break
    sides = {}
    for size, of_size in taken.items():
        before = [load.median for pair in of_size for load in pair.baseline]
        after = [load.median for pair in of_size for load in pair.candidate]
        sides[size] = (before, after)
    return _results(sides, judged, time.monotonic() - began)


def _against_saved(
    other: Baseline,
    candidate: Contender,
    sizes: Sequence[int],
    seconds: float,
    limits: Limits,
    seed: int,
    stages: Stages,
) -> tuple[tuple[Gate, ...], tuple[Latency, ...]]:
    """Sittings of the candidate alone against those of the saved result, in the order in which they were taken.

    Two sessions of one machine differ by more than a session does within itself: a saved result is the lesser baseline.
    """
    from mlpdeploy.evidence import contenders, gate

    saved = _saved_medians(other)
    if missing := [size for size in sizes if size not in saved]:
        raise InputError(f"--baseline {other.reference}: has no batch {missing[0]}, only {', '.join(map(str, saved))}")
    count = max(len(saved[size]) for size in sizes)
    began = time.monotonic()
    with stages("time the engine"):
        taken = contenders.sittings([candidate], sizes, count, seconds / len(sizes), seed, stages)
    sides, judged = {}, {}
    for size in sizes:
        after = taken[size].medians(candidate.name)[: len(saved[size])]
        before = saved[size][: len(after)]
        sides[size] = (before, after)
        logs = [math.log(mine / theirs) for mine, theirs in zip(after, before, strict=True)]
        judged[size] = gate.judge(logs, limits.slowdown, len(sizes), looks=1)
    more = "a saved result has only so many; git:REVISION or an artifact is measured until it is decided"
    return _results(sides, judged, time.monotonic() - began, more)


def _saved_medians(other: Baseline) -> dict[int, list[float]]:
    """Seconds of each sitting of the engine, or of each load of the candidate, by batch size."""
    from mlpdeploy.evidence.bench import BENCH

    assert other.document is not None
    bench = other.document["kind"] == BENCH
    rows = ((one["batch"], one["contenders"][0] if bench else one) for one in other.document["measurements"])
    return {batch: [1e-3 * median for median in row["medians_ms"]] for batch, row in rows}


def _results(
    sides: Mapping[int, tuple[list[float], list[float]]],
    judged: Mapping[int, Slowdown],
    spent: float,
    more: str = "--time gives it more",
) -> tuple[tuple[Gate, ...], tuple[Latency, ...]]:
    """Gates and measurements from the median of each load, seconds."""
    from statistics import median

    from mlpdeploy.evidence import gate, regress

    gates, measurements = [], []
    for size, (before, after) in sides.items():
        found = judged[size]
        reason = f"undecided after {found.pairs} pairs: {more}" if found.verdict == gate.UNDECIDED else ""
        gates.append(regress.latency_gate(size, found, 1e3 * median(before), 1e3 * median(after), reason))
        baseline_ms, medians_ms = (tuple(1e3 * second for second in side) for side in (before, after))
        measurements.append(regress.Latency(size, baseline_ms, medians_ms, round(spent, 1)))
    return tuple(gates), tuple(measurements)


def _contender(name: str, artifact: Artifact, backend: Backend, specs: Sequence[Any], threads: int) -> Contender:
    from mlpdeploy.evidence import contenders

    loadable = contenders.Loadable(backend, artifact.engine, artifact.manifest["facts"]).on(threads)
    return contenders.engine(name, "engine", name, loadable, specs)
