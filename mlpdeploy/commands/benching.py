"""`mlpdeploy bench`, top to bottom: find or build the engine and its rivals, time them together, explain the time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy.artifact import store, trust
from mlpdeploy.artifact.lookup import calibrated_before, folder_of
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.commands.bench_session import KNOWN, Session
from mlpdeploy.commands.measuring import (
    attach_to,
    built_copy,
    copy_of,
    covering,
    describe,
    held_to,
    require_executable,
    thread_count,
)
from mlpdeploy.engine.backend import pick
from mlpdeploy.errors import ArtifactError, InputError
from mlpdeploy.evidence.documents import layer_profile
from mlpdeploy.progress import Listener, Stages
from mlpdeploy.selection import Selection
from mlpdeploy.selection.checks import positive
from mlpdeploy.stages import load
from mlpdeploy.system.leftovers import workplace

if TYPE_CHECKING:
    from mlpdeploy.evidence.documents.bench import Bench, ContenderTimes
    from mlpdeploy.evidence.latency import timing
    from mlpdeploy.evidence.latency.contenders import Contender as Rival
    from mlpdeploy.network.source import Source

SECONDS = 20.0


def bench(
    selection: Selection,
    *,
    source: Source | None = None,
    artifact: Artifact | None = None,
    against: Sequence[str] | None = None,
    sizes: Sequence[int] = (),
    threads: int | None = None,
    seconds: float = SECONDS,
    credit: bool = False,
    trusted: bool = False,
    progress: Listener | None = None,
) -> Bench:
    """Time the engine of a selection against `against`: eager, compile, max-autotune, export, or names of networks.

    `source` is the network itself where it is in hand, `artifact` the engine where it is built already; the document is
    kept beside it. `trusted` says that engines may run although somebody else built them (see `trust`).

    `sizes` are the batch sizes (none: the smallest and the one that the engine is tuned for), `seconds` the budget of
    each, loading and warming up included. `against` None means AGAINST without what this machine cannot run. The engine
    is built where it is not built yet. Raises InputError where a size or baseline cannot be used, MachineLacks where
    nothing can be timed here.
    """
    from mlpdeploy.evidence.documents.bench import Bench
    from mlpdeploy.evidence.documents.engine_facts import facts_of
    from mlpdeploy.evidence.latency import machine

    stages = Stages(progress)
    backend = pick(selection.backend, selection.precision, selection.gpus)
    require_executable(backend, selection.precision)
    threads, seconds = thread_count(threads), positive("--time", seconds)
    selection = selection.with_backend(backend.name)
    if selection.quantised and credit:
        raise InputError(
            "--credit: an engine in 8 bits without a rule needs a calibration of its own; credit rules in fp16"
        )
    if artifact is None and selection.quantised and selection.calibration is None:
        artifact = calibrated_before(selection, folder_of(selection, backend))
        selection = replace(selection, batch=artifact.manifest["selection"]["batch"])
    elif artifact is None:
        selection = covering(selection, sizes)
    others = _others(against or (), selection)
    with ExitStack() as stack:
        folder = stack.enter_context(workplace())
        original, artifact = _copied(artifact, selection, source, folder / "engine", progress)
        trust.require(original, backend, trusted)
        profile = selection.profile
        if not all(profile.min <= size <= profile.max for size in sizes):
            raise InputError(
                f"{original.folder} takes batch {profile.min} to {profile.max}: build it for the others too"
            )
        sizes = list(dict.fromkeys(sizes)) or sorted({selection.profile.min, selection.profile.opt})
        stack.enter_context(held_to(threads))
        source = (source or load(selection, stages)).with_images(selection)
        session = Session(artifact, selection, backend, source, threads, folder, stages, trusted)
        # All that needs room on a disk comes before anything is measured, so that no measurement is lost to it.
        rivals, left_out = session.rivals(against, others, sizes[0])
        without = session.without_rules() if credit else {}
        facts = facts_of(artifact).to_json()
        before = machine.conditions()
        with stages("measure"):
            taken = session.measure(rivals, sizes, seconds)
        held = len(taken[sizes[0]].sittings)
        measurements = tuple(_measurement(size, timings, rivals) for size, timings in taken.items())
        with stages("roofline"):
            # PyTorch has no rate of 8-bit products to be held against.
            roofline = None if selection.quantised else session.roofline(taken)
        with stages("layers"):
            layers, times = session.layers(sizes[0])
        credits = session.credit(without, sizes[0], seconds) if credit else None
        after = machine.conditions()
    found = Bench(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        network=describe(artifact),
        selection=artifact.manifest["selection"],
        machine=machine.fingerprint(),
        conditions={"before": before, "after": after},
        settings={"threads": threads, "seconds": seconds, "sittings": held, "seed": selection.seed},
        facts=facts,
        measurements=measurements,
        roofline=roofline,
        layers=layers,
        credit=credits,
        left_out=left_out,
    )
    attach_to(original, store.BENCH, json.dumps(found.to_json(), indent=2, allow_nan=False) + "\n", stages)
    if times:
        attach_to(original, store.PROFILE, layer_profile.text(times), stages)
    return found


def _copied(
    given: Artifact | None, selection: Selection, source: Source | None, folder: Path, progress: Listener | None
) -> tuple[Artifact, Artifact]:
    """The artifact that was given, or is built, and a copy of it to measure, which another build does not touch."""
    if given is None:
        return built_copy(selection, folder, progress, source=source)
    copied = copy_of(given, folder)
    if copied is None:
        raise ArtifactError(f"{given.folder} is not the engine any more that it was: load it again")
    return given, copied


def _others(against: Sequence[str], selection: Selection) -> dict[str, Selection]:
    """Other networks of `against`: with the same precision, backend and batch sizes, their weights random."""
    names = (
        "precision", "backend", "batch", "out", "seed", "io", "gpus", "level", "plugin", "calibration", "calibrator",
    )  # fmt: skip
    same = {name: getattr(selection, name) for name in names}
    found = {}
    for name in (name for name in against if name not in KNOWN):
        try:
            found[name] = Selection(name, **same)
        except InputError as error:
            raise InputError(f"--against {name}: is none of {', '.join(KNOWN)}, and no network: {error}") from error
    return found


def _measurement(size: int, taken: timing.Timings, rivals: Sequence[Rival]) -> Any:
    from mlpdeploy.evidence.documents.bench import Measurement

    return Measurement(size, tuple(_contender(size, taken, one, rivals[1:]) for one in rivals), taken.host_clock)


def _contender(size: int, taken: timing.Timings, one: Rival, baselines: Sequence[Rival]) -> ContenderTimes:
    from mlpdeploy.evidence.documents.bench import Against, ContenderTimes, DevicePhases

    latency = taken.latency(one.name)
    return ContenderTimes(
        name=one.name,
        kind=one.kind,
        what=one.what,
        median_ms=1e3 * latency.median,
        p90_ms=1e3 * latency.p90,
        p99_ms=1e3 * latency.p99,
        images_per_second=size / latency.median,
        samples=latency.samples,
        calls_a_sample=taken.calls[one.name],
        medians_ms=tuple(1e3 * median for median in taken.medians(one.name)),
        against=tuple(Against(b.name, taken.ratio(one.name, b.name)) for b in baselines if b.name != one.name),
        phases=DevicePhases.of(taken, one.name),
    )
