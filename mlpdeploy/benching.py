"""`mlpdeploy bench`, top to bottom: find or build the engine and its rivals, time them together, explain the time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy import files, pipeline, store, trust
from mlpdeploy.engine.backend import Backend, pick
from mlpdeploy.errors import InputError, MachineLacks
from mlpdeploy.lookup import calibrated_before
from mlpdeploy.progress import Listener, Stages
from mlpdeploy.selection import Selection
from mlpdeploy.session import covering, describe, held_to, require_executable, thread_count
from mlpdeploy.store import Artifact

if TYPE_CHECKING:
    from mlpdeploy.evidence import timing
    from mlpdeploy.evidence.bench import Bench, Contender, Credit, Layers
    from mlpdeploy.evidence.contenders import Contender as Rival
    from mlpdeploy.evidence.contenders import Loadable
    from mlpdeploy.source import Source

AGAINST = ("eager", "compile", "export")
SITTINGS = 10
SECONDS = 20.0
PROFILED = 10
"""Runs that per-layer times are the median of."""


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
    """Time the engine of a selection against `against` (eager, compile, export, or other networks' names).

    `source` is the network itself where it is in hand, `artifact` the engine where it is built already; the document is
    kept beside it. `trusted` says that engines may run although somebody else built them (see `trust`).

    `sizes` are the batch sizes (none: the smallest and the one that the engine is tuned for), `seconds` the budget of
    each. `against` None means AGAINST without what this machine cannot run. The engine is built where it is not built
    yet. Raises InputError where a size or baseline cannot be used, MachineLacks where nothing can be timed here.
    """
    from mlpdeploy.evidence import machine
    from mlpdeploy.evidence.bench import Bench
    from mlpdeploy.evidence.facts import facts_of

    stages = Stages(progress)
    backend = pick(selection.backend, selection.precision, selection.gpus)
    require_executable(backend, selection.precision)
    threads = thread_count(threads)
    selection = selection.with_backend(backend.name)
    int8 = selection.precision == "int8"
    if int8 and credit:
        raise InputError("--credit: an INT8 engine without a rule needs a calibration of its own; credit rules in fp16")
    if artifact is None and int8 and selection.calibration is None:
        artifact = calibrated_before(selection, store.folder_of(selection, backend.name))
        selection = replace(selection, batch=artifact.manifest["selection"]["batch"])
    elif artifact is None:
        selection = covering(selection, sizes)
    others = _others(against or (), selection)
    artifact = artifact or pipeline.build(selection, source=source, progress=progress)
    trust.require(artifact, backend, trusted)
    profile = selection.profile
    if not all(profile.min <= size <= profile.max for size in sizes):
        raise InputError(f"{artifact.folder} takes batch {profile.min} to {profile.max}: build it for the others too")
    sizes = list(dict.fromkeys(sizes)) or sorted({selection.profile.min, selection.profile.opt})
    with held_to(threads), files.temporary_folder() as folder:
        source = source or pipeline.load(selection, stages)
        session = Session(artifact, selection, backend, source, threads, folder, stages, trusted)
        rivals, left_out = session.rivals(against, others)
        before = machine.conditions()
        with stages("measure"):
            taken = session.measure(rivals, sizes, seconds)
        measurements = tuple(_measurement(size, timings, rivals) for size, timings in taken.items())
        with stages("roofline"):
            # PyTorch has no rate of INT8 products to be held against.
            roofline = None if int8 else session.roofline(taken)
        with stages("layers"):
            layers = session.layers(sizes[0])
        credits = session.credit(sizes[0], seconds) if credit else None
        after = machine.conditions()
    found = Bench(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        network=describe(artifact),
        selection=artifact.manifest["selection"],
        machine=machine.fingerprint(),
        conditions={"before": before, "after": after},
        settings={"threads": threads, "seconds": seconds, "sittings": SITTINGS, "seed": selection.seed},
        facts=facts_of(artifact).to_json(),
        measurements=measurements,
        roofline=roofline,
        layers=layers,
        credit=credits,
        left_out=left_out,
    )
    store.attach(artifact, store.BENCH, json.dumps(found.to_json(), indent=2, allow_nan=False) + "\n")
    return found


class Session:
    """One measuring session: the artifact, its network, and the engines that are built to be held against it."""

    def __init__(
        self,
        artifact: Artifact,
        selection: Selection,
        backend: Backend,
        source: Source,
        threads: int,
        folder: Path,
        stages: Stages,
        trusted: bool,
    ) -> None:
        from mlpdeploy.evidence.contenders import Loadable

        self.artifact, self.selection, self.backend, self.source = artifact, selection, backend, source
        self.threads, self.folder, self.stages, self.trusted = threads, folder, stages, trusted
        self.specs = source.specs()
        # What an engine in INT8 is held against computes in the precision of what lies between its products.
        self.precision = backend.beside_int8 or "fp32" if selection.precision == "int8" else selection.precision
        self.engine = Loadable(backend, artifact.engine, artifact.manifest["facts"]).on(threads)
        self.export: Loadable | None = None

    def rivals(
        self, against: Sequence[str] | None, others: Mapping[str, Selection]
    ) -> tuple[list[Rival], dict[str, str]]:
        """The engine, and behind it what `against` names; and of AGAINST what cannot run here, with the reason."""
        from mlpdeploy.evidence import contenders
        from mlpdeploy.evidence.bench import COMPILE, EAGER, ENGINE, EXPORT

        what = f"{self.source.recipe.name} {self.selection.precision} with {self.backend.name}"
        found, left_out = [contenders.engine(ENGINE, ENGINE, what, self.engine, self.specs)], {}
        for name in dict.fromkeys(AGAINST if against is None else against):
            lacking = _no_compiler() if name == COMPILE else None
            if lacking is not None and against is not None:
                raise MachineLacks(f"torch.compile cannot run on this machine: {lacking}")
            if lacking is not None:
                left_out[name] = lacking
            elif name == EAGER:
                found.append(contenders.eager(self.source.network, self.specs, *self._torch()))
            elif name == COMPILE:
                found.append(contenders.compiled(self.source.network, self.specs, *self._torch()))
            elif name == EXPORT:
                found.append(self._export())
            else:
                found.append(self._other(others[name]))
        return found, left_out

    def measure(self, rivals: Sequence[Rival], sizes: Sequence[int], seconds: float) -> dict[int, timing.Timings]:
        """All contenders at each size, interleaved, in several sittings."""
        from mlpdeploy.evidence.contenders import sittings

        return sittings(rivals, sizes, SITTINGS, seconds, self.selection.seed, self.stages)

    def roofline(self, taken: Mapping[int, timing.Timings]) -> Any:
        """The machine's rates and what they mean for this network."""
        from mlpdeploy.evidence.roofline import roofline

        medians = {s: {n: 1e3 * t.latency(n).median for n in t.seconds} for s, t in taken.items()}
        executed = str(self.engine.facts.get("executed", ""))
        outputs = pipeline.trace_network(self.source, self.stages).outputs
        device = self._torch()[1]
        return roofline(
            self.source.network, self.specs, outputs, self.precision, executed, self.threads, device, medians
        )

    def layers(self, size: int) -> Layers:
        """Times by module of our engine, and of the plain export where it was built."""
        from mlpdeploy.evidence.bench import Layers

        after = self._profile(self.engine, store.read_model(self.artifact.model), size)
        if isinstance(after, str):
            return Layers(None, None, after)
        if self.export is None:
            return Layers(None, after, "the plain export was not among the contenders")
        before = self._profile(self.export, store.read_model(self.export.engine.parent / store.MODEL), size)
        return Layers(None, after, before) if isinstance(before, str) else Layers(before, after)

    def credit(self, size: int, seconds: float) -> tuple[Credit, ...]:
        """What each rule that fired is worth: the engine without it against the engine, each with its own budget."""
        from mlpdeploy.engine.emit import emit
        from mlpdeploy.evidence import contenders
        from mlpdeploy.evidence.bench import ENGINE, Credit

        traced = pipeline.trace_network(self.source, self.stages)
        rules = {rule["name"]: rule["fired"] for rule in self.artifact.manifest["rules"] if rule["fired"]}
        rivals = [contenders.engine(ENGINE, ENGINE, "every rule", self.engine, self.specs)]
        for rule in rules:
            without = replace(self.selection, disabled_rules=(*self.selection.disabled_rules, rule))
            emitted = emit(pipeline.compile_network(traced, without, self.stages).typed)
            built = self._built(f"without-{rule}", emitted)
            rivals.append(contenders.engine(rule, "rule", f"without {rule}", built, self.specs))
        with self.stages("credit"):
            taken = contenders.sittings(rivals, [size], SITTINGS, seconds, self.selection.seed, self.stages)[size]
        return tuple(Credit(rule, fired, size, taken.ratio(rule, ENGINE)) for rule, fired in rules.items())

    def _torch(self) -> tuple[Any, str]:
        """Dtype and device that PyTorch is timed with: the engine's on a GPU, float32 on a CPU."""
        import torch

        from mlpdeploy.engine.plain import DTYPES

        on_gpu = "tensorrt" in self.backend.name or self.engine.facts.get("device") == "cuda"
        if on_gpu and torch.cuda.is_available():
            return DTYPES[self.precision], "cuda"
        return torch.float32, "cpu"

    def _export(self) -> Rival:
        from mlpdeploy.engine.plain import plain
        from mlpdeploy.evidence import contenders
        from mlpdeploy.evidence.bench import EXPORT

        with self.stages("plain export"):
            emitted = plain(self.source.network, self.specs, self.precision)
            self.export = self._built(EXPORT, emitted)
        what = f"the plain export in {self.precision} with {self.backend.name}, no rule"
        return contenders.engine(EXPORT, EXPORT, what, self.export, self.specs)

    def _other(self, other: Selection) -> Rival:
        from mlpdeploy.evidence import contenders

        artifact = pipeline.build(other, progress=self.stages.listener)
        trust.require(artifact, self.backend, self.trusted)
        specs = pipeline.load(other, self.stages).specs()
        loadable = contenders.Loadable(self.backend, artifact.engine, artifact.manifest["facts"]).on(self.threads)
        what = f"{other.name} {other.precision} with {self.backend.name}"
        return contenders.engine(other.name, "recipe", what, loadable, specs)

    def _built(self, name: str, emitted: Any) -> Loadable:
        import onnx

        from mlpdeploy.evidence import contenders

        emitted = replace(emitted, model=self.backend.prepare(emitted.model))
        folder = self.folder / name
        built = contenders.build(self.backend, emitted, self.precision, self.selection.profile, folder, self.stages)
        onnx.save(emitted.model, folder / store.MODEL)
        return built.on(self.threads)

    def _profile(self, loadable: Loadable, model: Any, size: int) -> Any:
        from mlpdeploy.evidence.contenders import engine, prepared
        from mlpdeploy.evidence.layers import by_module

        one = engine("profiled", "engine", "", loadable, self.specs)
        inputs = prepared([one], size, self.selection.seed)[one.name][:PROFILED]
        layers = self.backend.profile(loadable.engine, loadable.facts, inputs)
        if isinstance(layers, str):
            return layers
        return by_module(layers, {node.name for node in model.graph.node}, size, self.backend.name)


def _others(against: Sequence[str], selection: Selection) -> dict[str, Selection]:
    """Other networks of `against`: with the same precision, backend and batch sizes, their weights random."""
    names = ("precision", "backend", "batch", "out", "seed", "io", "gpus", "calibration", "calibrator")
    same = {name: getattr(selection, name) for name in names}
    found = {}
    for name in (name for name in against if name not in AGAINST):
        try:
            found[name] = Selection(name, **same)
        except InputError as error:
            raise InputError(f"--against {name}: is none of {', '.join(AGAINST)}, and no network: {error}") from error
    return found


def _measurement(size: int, taken: timing.Timings, rivals: Sequence[Rival]) -> Any:
    from mlpdeploy.evidence.bench import Measurement

    return Measurement(size, tuple(_contender(size, taken, one, rivals[1:]) for one in rivals), taken.host_clock)


def _contender(size: int, taken: timing.Timings, one: Rival, baselines: Sequence[Rival]) -> Contender:
    from mlpdeploy.evidence.bench import Against, Contender, DevicePhases

    latency = taken.latency(one.name)
    return Contender(
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


def _no_compiler() -> str | None:
    if any(map(shutil.which, ("g++", "clang++", "cl"))):
        return None
    return "it needs a C++ compiler; install g++ (Debian, Ubuntu: apt-get install g++)"
