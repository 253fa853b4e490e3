"""The product, top to bottom: one straight flow of named stages.

    recipe -> trace -> check -> (search) -> rewrite -> (calibrate) -> plan precision -> emit -> build
                                                                                      `build`: an artifact
    recipe -> trace -> rewrite -> plan precision -> climb the ladder                  `verify`: a verification

`stages` has what the two share, `commands` what else there is. A network comes from a name, or is in hand in Python and
comes as a `Source` (see `api.compile`). Everything heavy is imported where it is used.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from mlpdeploy.artifact import decisions, store, trust
from mlpdeploy.artifact.lookup import (
    cached,
    check_traced,
    folder_of,
    key_of,
    meant,
    own,
    reopened,
    replaced,
)
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.calibration import Calibration, calibrate_network, calibrated_on, paid_off
from mlpdeploy.engine.backend import pick, unrouted
from mlpdeploy.errors import InputError
from mlpdeploy.network.source import Source
from mlpdeploy.progress import Listener, Stages
from mlpdeploy.search import decide
from mlpdeploy.selection import Selection
from mlpdeploy.selection.checks import positive
from mlpdeploy.stages import (
    check,
    compiled_again,
    load,
    named_classes,
    plan_network,
    rewrite_network,
    trace_network,
)
from mlpdeploy.system import documents
from mlpdeploy.system.turns import in_turn

if TYPE_CHECKING:
    from mlpdeploy.engine.backend import Backend
    from mlpdeploy.evidence.proof.ladder import Verification
    from mlpdeploy.evidence.proof.samples import Samples
    from mlpdeploy.zoo.recipe import Budget


@in_turn
def build(
    selection: Selection,
    *,
    source: Source | None = None,
    force: bool = False,
    worth: bool = True,
    search: float | None = None,
    tactics: float | None = None,
    progress: Listener | None = None,
) -> Artifact:
    """Build the engine of a selection, or find that it is built already (`Artifact.cached`); `force` builds anyway.

    With `worth`, a build in 8 bits ends with how fast the same network is in these, FP16 and FP32 on the engines that
    run here. `search` are seconds in which is found which rules and forms pay (see `mlpdeploy.search`), unless that is
    decided already, and `tactics` are seconds in which TensorRT's build routes are tried; with `force` both are decided
    anew.
    `source` is the network itself where it is in hand; without it the selection's name finds it. Raises InputError (and
    its kinds), BuildError or MachineLacks; an artifact that was there before is then untouched.
    """
    from mlpdeploy.artifact import manifest
    from mlpdeploy.evidence.report.summary import report

    stages = Stages(progress)
    for flag, seconds in (("--search", search), ("--tactics", tactics)):
        if seconds is not None:
            positive(flag, seconds)
    effort = decisions.Effort(search, tactics)
    if selection.quantised:
        calibrated_on(selection)
    backend = pick(selection.backend, selection.precision, selection.gpus, selection.request())
    selection = selection.with_backend(backend.name)
    if tactics is not None and not backend.has_routes:
        raise InputError(f"{unrouted(backend)}: drop --tactics")
    folder = folder_of(selection, backend)
    with store.locked(folder, stages.say, optional=True) as refused:
        key = key_of(selection, backend)
        if (found := cached(folder, key, force, stages, selection, backend, effort)) is not None:
            return found
        if refused is not None and (force or key is not None):
            raise refused
        source = (source or load(selection, stages)).with_images(selection)
        traced = trace_network(source, stages, selection.profile)
        source = source.with_outputs(traced.outputs)
        key = key or key_of(selection, backend, source, traced)
        if (found := cached(folder, key, force, stages, selection, backend, effort)) is not None:
            return found
        if refused is not None:
            raise refused
        if (line := replaced(selection, folder)) is not None:
            stages.say(line)
        labels = named_classes(traced, selection)
        notes = check(source, traced, selection, stages)
        case, decided = decide(traced, source, selection, backend, effort, force, stages)
        chosen = decisions.applied(selection, decided)
        rewritten = rewrite_network(traced, chosen, stages)
        calibration = calibrate_network(rewritten, source, chosen, stages) if selection.quantised else None
        compiled = plan_network(traced, rewritten, chosen, stages, calibration, backend.beside(selection.precision))
        with stages("emit"):
            from mlpdeploy.engine.onnx.emit import emit

            emitted = emit(compiled.served)
        with store.draft(folder) as draft:
            with stages("build"):
                import onnx

                request = replace(chosen.request(), before=own(folder))
                built = backend.build(emitted, request, draft.folder, stages)
                onnx.save(built.prepared.model, draft.folder / store.MODEL)
                outlines = manifest.outlines(compiled)
                (draft.folder / store.GRAPH).write_text(json.dumps(outlines), encoding="utf-8")
                if compiled.calibration is not None:
                    compiled.calibration.save(draft.folder, selection.name)
            paid = None if compiled.calibration is None or not worth else paid_off(compiled, chosen, stages)
            facts = manifest.describe(
                selection, backend, source, compiled, built, key, stages.seconds, notes, paid, labels
            )
            return draft.commit(facts | {"decided": decisions.described(case, decided)}, report)


@in_turn
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

    Climbs the ladder of `evidence.proof`, on random inputs or on `data` (what `--data` names, or arrays), and writes
    verification.json beside the engine; with `quick` not at the largest batch. `source` is the network itself where it
    is in hand; `artifact` is the engine where it was opened before: then this very one is meant. `trusted` says that
    its engine may run although somebody else built it (see `trust`). Raises ArtifactError where nothing of that
    selection is built.
    """
    if isinstance(data, str):
        from mlpdeploy.evidence.proof.samples import read_samples, require

        require(data, "--data")
    stages = Stages(progress)
    selection, backend, folder = meant(selection, artifact)
    with store.locked(folder, stages.say, optional=True), ExitStack() as stack:
        with stages("open"):
            artifact = reopened(selection, folder, artifact, source)
            if backend.executable() is None:
                trust.require(artifact, backend, trusted)
        stages.say(f"{folder}, built {artifact.manifest['created']}")
        # The engine was built for images that are prepared as they were then; the rows may be said to be so now.
        before = Selection.from_json(artifact.manifest["selection"])
        source = (source or load(selection, stages)).with_images(before)
        traced = trace_network(source, stages, selection.profile)
        check_traced(artifact, traced)
        if isinstance(data, str):
            shown = source.with_images(selection).with_outputs(traced.outputs)
            data = read_samples(data, "--data", shown, selection.seed, selection.limit, stages)
        calibration = Calibration.load(artifact.folder) if selection.quantised else None
        compiled = compiled_again(artifact, traced, selection, backend, calibration, stages)
        with stages("verify"):
            from mlpdeploy.artifact import manifest
            from mlpdeploy.evidence.proof.culprit import own_precision
            from mlpdeploy.evidence.proof.verify import verify as climb
            from mlpdeploy.evidence.report import reporting

            model, facts = documents.read_model(artifact.model), artifact.manifest["facts"]
            reason = backend.executable()
            engine = None
            if reason is None:
                engine = stack.enter_context(backend.load(artifact.engine, facts))
            else:
                backend.require_of(artifact.engine, facts, model)
            own = own_precision(traced.module)
            verification = climb(
                source.network,
                compiled.balanced,
                compiled.typed,
                model,
                engine,
                reason,
                selection.profile.up_to_opt() if quick else selection.profile,
                source.recipe.budget(selection.precision, own, selection.low_io),
                None if data is None else data.arrays,
                selection.seed,
                stages,
                labels=None if data is None else data.labels,
                # No CPU has TF32: there its graph is computed in FP32.
                beside=_beside(selection, backend, source, own),
                cpu_budget=source.recipe.budget("fp32", own, selection.low_io)
                if selection.precision == "tf32"
                else None,
                quantisation=None if calibration is None else calibration.quantisation,
                rows=None if calibration is None else calibration.rows,
                traced=compiled.traced,
                service=selection,
            )
            verification = replace(verification, data=() if data is None else tuple(data.used()))
            if (largest := selection.profile.max) not in verification.sizes:
                untried = f"batch {largest} was not tried: without --quick it is"
                verification = replace(verification, notes=(*verification.notes, untried))
        document = manifest.evidence(artifact.manifest, verification)
        try:
            store.attach(artifact, store.VERIFICATION, json.dumps(document, indent=2, allow_nan=False) + "\n")
            store.attach(artifact, store.REPORT, reporting.in_markdown(artifact))
        except InputError as error:
            stages.warn(f"what was found is not kept beside the engine: {error}")
        return verification


def _beside(selection: Selection, backend: Backend, source: Source, own: str | None) -> tuple[str, Budget] | None:
    """The precision of activations where only weights are codes, and its budget."""
    beside = backend.beside(selection.precision)
    return (
        None if selection.quantised or beside is None else (beside, source.recipe.budget(beside, own, selection.low_io))
    )
