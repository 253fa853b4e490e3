"""`mlpdeploy regress`, top to bottom: open the baseline, build the candidate, time both, compare what needs no time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mlpdeploy import pipeline
from mlpdeploy.artifact import trust
from mlpdeploy.artifact.lookup import backend_of
from mlpdeploy.artifact.store import REPORT, VERIFICATION, Artifact
from mlpdeploy.commands import baseline as baselines
from mlpdeploy.commands import unlike
from mlpdeploy.commands.abroad import absolute
from mlpdeploy.commands.baseline import Baseline
from mlpdeploy.commands.gating_latency import Terms, latency
from mlpdeploy.commands.measuring import attach_to, built_copy, covering, describe, held_to, thread_count
from mlpdeploy.engine.backend import pick
from mlpdeploy.engine.batch import Batch
from mlpdeploy.errors import InputError, MachineLacks
from mlpdeploy.progress import Listener, Stages
from mlpdeploy.selection import Selection
from mlpdeploy.selection.checks import positive
from mlpdeploy.selection.parse import parse_batch
from mlpdeploy.system.leftovers import temporary_folder, workplace

if TYPE_CHECKING:
    from mlpdeploy.evidence.documents.engine_facts import Facts
    from mlpdeploy.evidence.documents.regress import Limits, Regress

SECONDS = 300.0
LEFT = 1
"""Cores that timing leaves to others."""
BUILDS = 3
"""Builds of a candidate before its time counts as too long."""


def regress(
    selection: Selection,
    reference: str | None = None,
    *,
    baseline_env: str | None = None,
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

    That is what `reference` says, or what another interpreter, `baseline_env`, makes of the same network and runs.
    `sizes` are the batch sizes to time (none: the smallest), `threads` those of a CPU engine (none: as many as a saved
    result had, or one for each core but one), `seconds` the time that may be spent on them together; as
    many pairs as a verdict needs are taken in any case. `accepted` names gates that may get worse this time. The
    candidate and what is built at a revision are verified where they are not, on the images of `data` or on random
    inputs. `trusted` says that engines may run although somebody else built them (see `trust`). What is timed are
    copies of both sides, which another build does not touch. Raises InputError where something cannot be used, and
    MachineLacks where a saved result is of another machine.
    """
    from mlpdeploy.evidence.documents import regress
    from mlpdeploy.evidence.latency import machine
    from mlpdeploy.evidence.proof import samples

    stages, limits = Stages(progress), limits or regress.Limits()
    regress.accept((), accepted)
    if undecided not in ("pass", "fail"):
        raise InputError(f"--undecided {undecided}: give pass or fail")
    if data is not None:
        samples.require(data, "--data")
    backend = pick(selection.backend, selection.precision, selection.gpus)
    thread_count(threads)
    seconds = positive("--time", seconds)
    selection = covering(selection.with_backend(backend.name), sizes)
    sizes = list(dict.fromkeys(sizes)) or [selection.profile.min]
    before = machine.conditions()
    verify = [] if data is None else ["--data", absolute(data)]
    with baselines.opened(reference, baseline_env, selection, verify, stages) as other, workplace() as folder:
        if other.document is not None:
            _require_same_machine(other)
        elif other.described["kind"] == "artifact" and other.artifact is not None:  # one of git was built just now
            trust.require(other.artifact, backend_of(other.artifact), trusted)
        original, artifact = built_copy(selection, folder / "candidate", progress)
        trust.require(original, backend, trusted)
        threads = _threads(threads, other)
        differ = unlike.differences(other, artifact, threads)
        for line in differ:
            stages.say(f"not alike: {line}")
        batch = _common_batch(other, artifact)
        facts = _verified(selection, original, artifact, batch, data, stages)
        theirs = _facts_of_baseline(other, batch)
        facts = _built_again(selection, facts, theirs, limits, progress)
        with held_to(threads):
            terms = Terms(sizes, threads, seconds, limits.slowdown, selection.seed)
            gates, measurements = latency(other, artifact, selection, terms, stages)
    judged = (*gates, *regress.fact_gates(theirs, facts, limits))
    return regress.Regress(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        network=describe(artifact),
        selection=artifact.manifest["selection"],
        machine=machine.fingerprint(),
        conditions={"before": before, "after": machine.conditions()},
        settings={"threads": threads, "seconds": seconds, "seed": selection.seed},
        baseline=other.described | {"differs": differ},
        facts=facts,
        baseline_facts=theirs,
        gates=regress.accept(judged, accepted),
        measurements=measurements,
        undecided=undecided,
    )


def _threads(asked: int | None, other: Baseline) -> int:
    """As asked, or as a saved result was measured; else a core is left to all that is not being timed.

    Without one, whatever else runs takes turns with the engine's own threads, and two loads differ more.
    """
    if asked is None and other.document is not None:
        asked = other.document["settings"]["threads"]
    return thread_count(asked, LEFT)


def _require_same_machine(other: Baseline) -> None:
    """Times of another machine say nothing about this one. Raises MachineLacks that names what differs."""
    from mlpdeploy.evidence.latency import machine

    assert other.document is not None
    differ = machine.differences(machine.fingerprint(), other.document["machine"])
    if differ:
        raise MachineLacks(
            f"{other.called}: was measured on another machine or with other versions "
            f"({'; '.join(differ)}): give an artifact or git:REVISION, which is measured here"
        )


def _common_batch(other: Baseline, artifact: Artifact) -> int | None:
    """The largest batch that both sides take, None where there is none; of a saved result that of its facts."""
    ours = Batch(**artifact.manifest["batch"])
    if other.artifact is None:
        assert other.document is not None
        known = other.document["facts"].get("memory_batch") or parse_batch(other.document["selection"]["batch"]).max
        return known if ours.min <= known <= ours.max else None
    theirs = Batch(**other.artifact.manifest["batch"])
    largest = min(ours.max, theirs.max)
    return largest if largest >= max(ours.min, theirs.min) else None


def _verified(
    selection: Selection, original: Artifact, artifact: Artifact, batch: int | None, data: str | None, stages: Stages
) -> Facts:
    """The facts of the candidate, verified first where nothing says how accurate these files are.

    What the verification finds stays beside the original too.
    """
    from mlpdeploy.evidence.documents.engine_facts import facts_of, verification_of

    known = verification_of(artifact)
    if isinstance(known, str) or (data is not None and known["inputs"] != "images"):
        # Whether it may run was decided before.
        pipeline.verify(selection, artifact=artifact, data=data, trusted=True, progress=stages.listener)
        for name in (VERIFICATION, REPORT):
            attach_to(original, name, (artifact.folder / name).read_text(encoding="utf-8"), stages)
    return facts_of(artifact, batch)


def _facts_of_baseline(other: Baseline, batch: int | None) -> Facts:
    """What is known of the baseline; the time of its build only where it was built in this session."""
    from mlpdeploy.evidence.documents.engine_facts import Facts, facts_of
    from mlpdeploy.evidence.documents.regress import BUILD, MEMORY

    if other.artifact is not None:
        found = facts_of(other.artifact, batch)
    else:
        assert other.document is not None
        found = Facts.from_json(other.document["facts"])
        found = replace(found, memory_batch=batch)
    if batch is None:
        why = "there is no batch that both sides take and whose memory is known"
        found = replace(found, memory_bytes=None, reasons={**found.reasons, MEMORY: why})
    if other.described["kind"] in baselines.BUILT:
        return found
    why = "the baseline was built in another session; git:REVISION is built in this one"
    return replace(found, build_seconds=None, reasons={**found.reasons, BUILD: why})


def _built_again(selection: Selection, facts: Facts, theirs: Facts, limits: Limits, progress: Listener | None) -> Facts:
    """The candidate's facts; where its build took too long, with the best of a few: one may have met a busy time."""
    for _ in range(BUILDS - 1):
        longest = None if theirs.build_seconds is None else theirs.build_seconds * (1 + limits.build)
        if longest is None or facts.build_seconds is None or facts.build_seconds <= longest:
            break
        with temporary_folder() as folder:
            again = pipeline.build(replace(selection, out=folder), force=True, progress=progress)
            facts = replace(facts, build_seconds=min(facts.build_seconds, again.manifest["facts"]["build_seconds"]))
    return facts
