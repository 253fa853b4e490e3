"""The product, top to bottom: what each command does, as one straight flow of named stages.

    recipe -> trace -> check -> rewrite -> (calibrate) -> plan precision -> emit -> build   `build`: an artifact
    recipe -> trace -> rewrite -> plan precision -> climb the ladder                  `verify`: a verification
    recipe -> trace -> check -> rewrite -> calibrate -> one site at a time            `sensitivity`: what INT8 costs
    build -> rivals -> time in sittings -> roofline, layers                           `bench`, in benching.py
    baseline -> build -> verify -> time in pairs -> judge the gates                   `regress`, in gating.py

`compile_network` is what the two share. A network comes from a name, or is in hand in Python and comes as a `Source`
(see `api.compile`). Everything heavy is imported where it is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy import documents, store, trust
from mlpdeploy.choice import NetworkChoice
from mlpdeploy.engine.backend import Batch, backends, pick
from mlpdeploy.errors import InputError
from mlpdeploy.int8 import Int8, calibrated_on, calibration, measure_sites, paid_off
from mlpdeploy.lookup import (
    built_folder,
    cached,
    check_same,
    check_traced,
    find_artifact,
    folder_of,
    key_of,
    open_built,
    replaced,
)
from mlpdeploy.progress import Listener, Stages
from mlpdeploy.recipe import recipes
from mlpdeploy.results import require_room
from mlpdeploy.selection import OUT, Selection
from mlpdeploy.source import Source, source_of
from mlpdeploy.store import Artifact

if TYPE_CHECKING:
    from mlpdeploy.evidence.bench import Bench
    from mlpdeploy.evidence.history import History
    from mlpdeploy.evidence.ladder import Verification
    from mlpdeploy.evidence.regress import Regress
    from mlpdeploy.evidence.samples import Samples
    from mlpdeploy.graph.precision import Plan, Typed
    from mlpdeploy.graph.rewrite import Rewritten
    from mlpdeploy.graph.trace import Traced


MOST_SIZES = 256
"""Batch sizes that are tried one by one."""


@dataclass(frozen=True)
class Compiled:
    """What the graph compiler made of a network, each stage's result."""

    traced: Traced
    rewritten: Rewritten
    plan: Plan
    typed: Typed
    unbalanced: Rewritten
    """The rewritten graph before an INT8 plan moved any range from activations to weights."""
    int8: Int8 | None = None


def build(
    selection: Selection,
    *,
    source: Source | None = None,
    force: bool = False,
    worth: bool = True,
    progress: Listener | None = None,
) -> Artifact:
    """Build the engine of a selection, or find that it is built already (`Artifact.cached`); `force` builds anyway.

    With `worth`, an INT8 build ends with how fast the same network is in INT8, FP16 and FP32 on the engines that run
    here.
    `source` is the network itself where it is in hand; without it the selection's name finds it. Raises InputError (and
    its kinds), BuildError or MachineLacks; an artifact that was there before is then untouched.
    """
    from mlpdeploy import manifest
    from mlpdeploy.evidence.report import report

    stages = Stages(progress)
    int8 = selection.precision == "int8"
    if int8:
        calibrated_on(selection)
    backend = pick(selection.backend, selection.precision, selection.gpus, selection.plugin)
    selection = selection.with_backend(backend.name)
    folder = folder_of(selection, backend)
    with store.locked(folder, stages.say, optional=True) as refused:
        key = key_of(selection, backend)
        if (found := cached(folder, key, force, stages)) is not None:
            return found
        if refused is not None and (force or key is not None):
            raise refused
        source = (source or load(selection, stages)).with_images(selection)
        traced = trace_network(source, stages, selection.profile)
        source = source.with_outputs(traced.outputs)
        key = key or key_of(selection, backend, source, traced)
        if (found := cached(folder, key, force, stages)) is not None:
            return found
        if refused is not None:
            raise refused
        if (line := replaced(selection, folder)) is not None:
            stages.say(line)
        notes = check(source, traced, selection, stages)
        calibrated = partial(calibration, source=source, selection=selection, stages=stages) if int8 else None
        compiled = compile_network(traced, selection, stages, calibrated, backend.beside_int8)
        with stages("emit"):
            from mlpdeploy.engine.emit import emit

            emitted = emit(compiled.typed)
        with store.draft(folder) as draft:
            with stages("build"):
                import onnx

                built = backend.build(emitted, selection.request(), draft.folder, stages)
                onnx.save(built.prepared.model, draft.folder / store.MODEL)
                outlines = manifest.outlines(compiled)
                (draft.folder / store.GRAPH).write_text(json.dumps(outlines), encoding="utf-8")
                if compiled.int8 is not None:
                    compiled.int8.save(draft.folder, selection.name)
            paid = None if compiled.int8 is None or not worth else paid_off(compiled, selection, stages)
            facts = manifest.describe(selection, backend, source, compiled, built, key, stages.seconds, notes, paid)
            return draft.commit(facts, report)


def verify(
    selection: Selection,
    *,
    source: Source | None = None,
    artifact: Artifact | None = None,
    data: str | Samples | None = None,
    quick: bool = False,
    trusted: bool = False,
    progress: Listener | None = None,
) -> Verification:
    """Prove that the built engine of a selection computes what its network computes (`Verification.passed`).

    Climbs the ladder of `evidence.verify`, on random inputs or on `data` (what `--data` names, or arrays), and writes
    verification.json beside the engine; with `quick` not at the largest batch. `source` is the network itself where it
    is in hand; `artifact` is the engine where it was opened before: then this very one is meant. `trusted` says that
    its engine may run although somebody else built it (see `trust`). Raises ArtifactError where nothing of that
    selection is built.
    """
    if isinstance(data, str):
        from mlpdeploy.evidence.samples import read_samples, require

        require(data, "--data")
    stages = Stages(progress)
    backend = pick(selection.backend, selection.precision, selection.gpus)
    selection = selection.with_backend(backend.name)
    folder = built_folder(selection, backend) if artifact is None else artifact.folder
    with store.locked(folder, stages.say, optional=True), ExitStack() as stack:
        with stages("open"):
            if artifact is not None:
                store.require_same(artifact)
            artifact = open_built(selection, folder)
            check_same(artifact, selection, source)
            if backend.executable() is None:
                trust.require(artifact, backend, trusted)
        stages.say(f"{folder}, built {artifact.manifest['created']}")
        # The engine was built for images that are prepared as they were then; the rows may be said to be so now.
        before = Selection.from_json(artifact.manifest["selection"])
        source = (source or load(selection, stages)).with_images(before)
        traced = trace_network(source, stages)
        check_traced(artifact, traced)
        if isinstance(data, str):
            shown = source.with_images(selection).with_outputs(traced.outputs)
            data = read_samples(data, "--data", shown, selection.seed, selection.limit, stages)
        int8 = Int8.load(artifact.folder) if selection.precision == "int8" else None
        calibrated = None if int8 is None else lambda rewritten: int8
        compiled = compile_network(traced, selection, stages, calibrated, backend.beside_int8)
        with stages("verify"):
            from mlpdeploy import manifest, reporting
            from mlpdeploy.evidence.verify import verify as climb

            reason = backend.executable()
            engine = None
            if reason is None:
                engine = stack.enter_context(backend.load(artifact.engine, artifact.manifest["facts"]))
            budgets = source.recipe.budgets
            verification = climb(
                source.network,
                compiled.rewritten,
                compiled.typed,
                documents.read_model(artifact.model),
                engine,
                reason,
                replace(selection.profile, max=selection.profile.opt) if quick else selection.profile,
                budgets[selection.precision],
                None if data is None else data.arrays,
                selection.seed,
                stages,
                labels=None if data is None else data.labels,
                # No CPU has TF32: there its graph is computed in FP32.
                cpu_budget=budgets["fp32"] if selection.precision == "tf32" else None,
                quantisation=None if int8 is None else int8.quantisation,
                rows=None if int8 is None else int8.rows,
                traced=compiled.traced,
            )
            verification = replace(verification, data=() if data is None else tuple(data.used()))
            if (largest := selection.profile.max) not in verification.sizes:
                untried = f"batch {largest} was not tried: without --quick it is"
                verification = replace(verification, notes=(*verification.notes, untried))
        document = manifest.verified(artifact.manifest, verification)
        try:
            store.attach(artifact, store.VERIFICATION, json.dumps(document, indent=2, allow_nan=False) + "\n")
            store.attach(artifact, store.REPORT, reporting.in_markdown(artifact))
        except InputError as error:
            stages.warn(f"what was found is not kept beside the engine: {error}")
        return verification


def sensitivity(selection: Selection, *, progress: Listener | None = None) -> tuple[dict[str, Any], Path]:
    """What INT8 costs a network, site by site, as JSON values: a row each, the most harmful first; and the picture.

    Calibrates on `selection.calibration`. Raises InputError where that cannot be used.
    """
    from mlpdeploy.evidence.charts import standalone
    from mlpdeploy.evidence.charts_int8 import noise

    calibrated_on(selection)
    stages = Stages(progress)
    selection = selection.with_backend(pick(selection.backend, selection.precision).name)
    source = load(selection, stages).with_images(selection)
    traced = trace_network(source, stages)
    source = source.with_outputs(traced.outputs)
    check(source, traced, selection, stages)
    rewritten = rewrite_network(traced, selection, stages)
    int8 = measure_sites(rewritten, source, selection, stages)
    found = int8.quantisation
    picture = selection.out / selection.folder_name / "sensitivity.svg"
    heading = f"{source.recipe.name}: what each module costs where it alone takes INT8"
    store.place(picture, standalone(noise(int8.ranked), heading))
    document = {
        "name": source.recipe.name,
        "weights": selection.weights(),
        "calibration": int8.summary(),
        "whole_sqnr_db": found.sqnr_db[found.calibrator],
        "sites": list(int8.ranked),
    }
    return document, picture


def bench(selection: Selection, **options: Any) -> Bench:
    """Time the engine of a selection beside its rivals (see `benching.bench`), and add the run to the history."""
    from mlpdeploy import benching

    require_room(_history(selection))
    found = benching.bench(selection, **options)
    _remember(selection, found.to_json(), Stages(options.get("progress")))
    return found


def regress(selection: Selection, reference: str, **options: Any) -> Regress:
    """Hold the engine of a selection against a baseline (see `gating.regress`), and add the run to the history."""
    from mlpdeploy import gating

    require_room(_history(selection))
    found = gating.regress(selection, reference, **options)
    _remember(selection, found.to_json(), Stages(options.get("progress")))
    return found


def history(selection: Selection) -> History:
    """The runs of `bench` and `regress` of a network so far. Raises InputError where there are none."""
    from mlpdeploy.evidence.history import read

    return read(_history(selection), selection.name)


def load(selection: NetworkChoice, stages: Stages) -> Source:
    """The network that was chosen, with its weights."""
    with stages("load"):
        found = source_of(selection)
    for note in found.notes:
        stages.say(note)
    return found


def check(source: Source, traced: Traced, selection: Selection, stages: Stages) -> tuple[str, ...]:
    """Find the network one function of each row, and its trace the same; says and gives notes on its outputs."""
    with stages("check"):
        from mlpdeploy.evidence import itself

        notes = itself.check(source.network, traced, selection.seed)
    for note in notes:
        stages.say(f"note: {note}")
    return notes


def trace_network(source: Source, stages: Stages, batch: Batch | None = None) -> Traced:
    """The network's graph, over inputs of the shapes that its recipe says, a batch axis in front.

    Raises NetworkError where it treats some sizes of a `batch` in another way than others.
    """
    with stages("trace"):
        from mlpdeploy.graph.trace import trace

        sizes = () if batch is None else (*range(batch.min, min(batch.max, MOST_SIZES)), *batch.sizes())
        return trace(source.network, source.specs(), sizes, source.output_names)


def compile_network(
    traced: Traced,
    selection: Selection,
    stages: Stages,
    calibrated: Callable[[Rewritten], Int8] | None = None,
    beside_int8: str | None = None,
) -> Compiled:
    """The graph compiler: from a traced network to the graph whose every dtype is decided.

    INT8 needs `calibrated`, which gives the rewritten graph its ranges, and the precision of what is `beside_int8`.
    """
    rewritten = rewrite_network(traced, selection, stages)
    int8 = None if calibrated is None else calibrated(rewritten)
    with stages("plan precision"):
        from mlpdeploy.graph.equalise import equalise
        from mlpdeploy.graph.precision import apply, plan

        quantisation = None if int8 is None else int8.quantisation
        balanced = rewritten if quantisation is None else equalise(rewritten, quantisation.equalised)
        samples, beside = None if int8 is None else int8.rows, beside_int8 or "fp32"
        planned = plan(balanced, selection.precision, selection.io, samples, quantisation, beside)
        typed = apply(balanced, planned)
    return Compiled(traced, balanced, planned, typed, rewritten, int8)


def rewrite_network(traced: Traced, selection: Selection, stages: Stages) -> Rewritten:
    """The same function as an engine likes it."""
    with stages("rewrite"):
        from mlpdeploy.graph.rewrite import rewrite

        backend = backends().get(selection.backend)
        off = () if backend is None else backend.off
        return rewrite(traced, selection.disabled_in_graph, selection.enabled_rules, off)


def inspect(
    target: str, *, precision: str | None = None, backend: str | None = None, out: Path = OUT
) -> dict[str, Any]:
    """What is in an artifact: its manifest, where it lies, and its verification where there is one.

    `target` is a path or the name of a network; where several of its artifacts fit, InputError lists them.
    """
    artifact = find_artifact(target, precision=precision, backend=backend, out=out)
    verification = store.attached(artifact, store.VERIFICATION)
    return {"folder": str(artifact.folder), "manifest": artifact.manifest, "verification": verification}


def catalogue(pattern: str | None = None) -> list[dict[str, Any]]:
    """Every recipe, as JSON values; only those with `pattern` in their name, aliases or family, where one is given.

    Raises InputError, with the families there are, where none fits.
    """
    from dataclasses import asdict

    wanted = (pattern or "").lower()
    found = [recipe for recipe in recipes().values() if any(wanted in n for n in (*recipe.names, recipe.family))]
    if not found:
        families = ", ".join(dict.fromkeys(recipe.family for recipe in recipes().values()))
        raise InputError(f"no recipe or family has {pattern!r} in its name; the families are {families}")
    return [asdict(recipe) for recipe in found]


def doctor() -> dict[str, Any]:
    """What this machine has, which backends work on it, why others do not, and what to install."""
    from mlpdeploy.examination import examine

    return examine()


def _history(selection: Selection) -> Path:
    from mlpdeploy.evidence.history import FILE

    return selection.out / selection.folder_name / FILE


def _remember(selection: Selection, document: dict[str, Any], stages: Stages) -> None:
    """Add a run to the history; where that cannot be written, the run is not lost for it."""
    from mlpdeploy.evidence.history import append, entry, revision_here

    try:
        append(_history(selection), entry(document, revision_here()))
    except InputError as error:
        stages.warn(str(error))
