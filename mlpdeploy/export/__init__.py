"""Engines for other tools: an artifact, or what it was built from, in a folder that they read.

recipe -> trace -> rows of input, and what the network makes of them -> a folder for NVIDIA's tools
artifact -> a version of a model in a repository of Triton's
artifact -> a folder with what runs it, and a Dockerfile

A format is a file or a folder of this folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy.artifact import cache, store
from mlpdeploy.artifact.lookup import check_same, check_traced, find_artifact, meant, reopened
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.calibration import Calibration
from mlpdeploy.engine.backend import LAYERS
from mlpdeploy.engine.runner import Arrays
from mlpdeploy.engine.signature import Signature
from mlpdeploy.errors import InputError
from mlpdeploy.export.folders import in_one_step, require_new
from mlpdeploy.progress import Listener, Stages
from mlpdeploy.selection import Selection
from mlpdeploy.stages import load, trace_network
from mlpdeploy.system.turns import in_turn

if TYPE_CHECKING:
    import onnx

    from mlpdeploy.engine.backend import Backend
    from mlpdeploy.export.triton import Wanted
    from mlpdeploy.graph.tracing.trace import Traced
    from mlpdeploy.network.source import Source

FORMATS = ("trtexec", "triton", "bundle")


@dataclass(frozen=True)
class Exported:
    """What leaves: the ONNX file that the engine was built from, rows, and the network's outputs for them, in float32.

    `tolerances` are absolute, by output: what any element may be off. `layers` are what is known of the layers of the
    engine: texts by file. `part` says what of the network the file is, where it is not all of it.
    """

    manifest: dict[str, Any]
    selection: Selection
    model: onnx.ModelProto
    signature: Signature
    inputs: Arrays
    outputs: Arrays
    tolerances: dict[str, float]
    weights_sha256: str
    layers: dict[str, str] = field(default_factory=dict)
    part: str | None = None

    @property
    def rows(self) -> int:
        """How many rows there are of each array."""
        return len(next(iter(self.inputs.values())))


@in_turn
def export(
    selection: Selection,
    to: str,
    folder: Path,
    *,
    artifact: Artifact | None = None,
    wanted: Wanted | None = None,
    trusted: bool = False,
    progress: Listener | None = None,
) -> dict[str, Any]:
    """Write the artifact of a selection in the format `to`: its files and the lines to type, as JSON values.

    `trtexec` and `bundle` write a new folder, `triton` a version of a model into a repository, which it makes where
    there is none (`wanted` says how it is to be served). `trusted`: code of somebody else's may run where a bundle or a
    model goes. `artifact` is the one that is meant where it was opened before. Raises InputError where there is no such
    format, or where `folder` holds something else or cannot be written, and ArtifactError where nothing of that
    selection is built.
    """
    if to not in FORMATS:
        raise InputError(f"--to {to}: no such format; choose one of: {', '.join(FORMATS)}")
    stages = Stages(progress)
    if to == "triton":
        from mlpdeploy.export import triton

        with stages("write"):
            return triton.add(artifact or _only(selection), folder, wanted, trusted=trusted)
    if to == "bundle":
        from mlpdeploy.export import bundle

        with stages("write"):
            return bundle.write(artifact or _only(selection), folder, trusted=trusted)
    from mlpdeploy.export import trtexec

    require_new(folder)
    found = _gathered(selection, artifact, stages)
    with stages("write"), in_one_step(folder) as draft:
        lines = trtexec.write(found, draft)
        files = sorted(path.relative_to(draft).as_posix() for path in draft.rglob("*") if path.is_file())
    return {"folder": str(folder), "format": to, "files": files, "commands": lines}


def _only(selection: Selection) -> Artifact:
    """The one artifact of a selection: neither its network nor what builds such engines is needed to copy it."""
    backend = None if selection.backend == "auto" else selection.backend
    found = find_artifact(selection.name, precision=selection.precision, backend=backend, out=selection.out)
    check_same(found, selection.with_backend(found.manifest["backend"]), None)
    return found


@dataclass(frozen=True)
class Opened:
    """An artifact that was found, its file, the network that it was built of, and the `selection` that names it."""

    selection: Selection
    backend: Backend
    artifact: Artifact
    model: onnx.ModelProto
    calibration: Calibration | None
    source: Source
    traced: Traced


def open_built(selection: Selection, artifact: Artifact | None, stages: Stages) -> Opened:
    """The artifact of a selection, or `artifact`, and its network. Raises ArtifactError where they do not fit."""
    from mlpdeploy.system import documents

    selection, backend, place = meant(selection, artifact)
    with store.locked(place, stages.say, optional=True), stages("open"):
        artifact = reopened(selection, place, artifact)
        model = documents.read_model(artifact.model)
        calibration = Calibration.load(artifact.folder) if selection.quantised else None
    source = load(selection, stages).with_images(Selection.from_json(artifact.manifest["selection"]))
    traced = trace_network(source, stages, selection.profile)
    check_traced(artifact, traced)
    return Opened(selection, backend, artifact, model, calibration, source, traced)


def _gathered(selection: Selection, artifact: Artifact | None, stages: Stages) -> Exported:
    from mlpdeploy.evidence.proof.answers import of_scores
    from mlpdeploy.evidence.proof.culprit import own_precision
    from mlpdeploy.evidence.proof.reference import distinct_rows
    from mlpdeploy.evidence.proof.runs import SINGLE, in_batches, module_run

    opened = open_built(selection, artifact, stages)
    selection, artifact, traced, calibration = opened.selection, opened.artifact, opened.traced, opened.calibration
    source = opened.source
    with stages("run"):
        import torch

        signature = Signature.from_facts(artifact.manifest["facts"])
        names = [spec.name for spec in traced.outputs]
        real = None if calibration is None else calibration.rows
        rows = distinct_rows(traced.inputs, real, selection.profile.opt, selection.seed)
        outputs = in_batches(module_run(source.network, traced.inputs, names, torch.float32), rows, SINGLE)
    budget = source.recipe.budget(
        selection.precision, own_precision(traced.module), selection.low_io
    ).max_relative_error
    weights = cache.weights_sha256(source.bare.network)
    outputs, allowed = of_scores(outputs, tolerances(outputs, budget), selection)
    layers = {name: text for name in (LAYERS, store.PROFILE) if (text := store.beside(artifact, name)) is not None}
    return Exported(artifact.manifest, selection, opened.model, signature, rows, outputs, allowed, weights, layers)


def tolerances(outputs: dict[str, Any], budget: float) -> dict[str, float]:
    """The budget of the ladder, which is relative to the size of a row, in the units of each output."""
    from mlpdeploy.evidence.proof.compare import usual
    from mlpdeploy.evidence.proof.reference import require_finite

    require_finite(outputs)
    return {name: budget * usual(outputs, name) for name in outputs}
