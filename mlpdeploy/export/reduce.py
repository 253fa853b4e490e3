"""What failed, as small as it is: the part of a network whose file or engine is wrong, in a folder for NVIDIA's tools.

verification that failed -> right values of every operation -> the smallest part that is wrong -> a folder
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy.artifact import cache
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.engine.runner import Arrays
from mlpdeploy.engine.signature import Port, Signature
from mlpdeploy.errors import InputError
from mlpdeploy.export import Exported, open_built, tolerances, trtexec
from mlpdeploy.export.folders import in_one_step, require_new
from mlpdeploy.progress import Listener, Stages
from mlpdeploy.selection import Selection
from mlpdeploy.stages import Compiled, compiled_again
from mlpdeploy.system.leftovers import temporary_folder
from mlpdeploy.system.turns import in_turn

if TYPE_CHECKING:
    import onnx

    from mlpdeploy.engine.backend import Backend
    from mlpdeploy.evidence.proof.ladder import Stage, Verification
    from mlpdeploy.evidence.proof.reduce import Open, Part
    from mlpdeploy.evidence.proof.runs import Run
    from mlpdeploy.graph.tracing.trace import TensorSpec


@in_turn
def reduce(
    selection: Selection,
    verification: Verification,
    folder: Path,
    *,
    artifact: Artifact | None = None,
    progress: Listener | None = None,
) -> dict[str, Any]:
    """Write the smallest part that fails as `verification` did to a new folder: what it is, and lines to type, as JSON.

    An error that is infinite is None. Raises InputError where the stage that failed is not one of the file or the
    engine, where no part fails on ordinary or extreme rows, or where `folder` holds something.
    """
    from mlpdeploy.evidence.proof.reduce import smallest

    stage, stages = _of_the_file(verification), Stages(progress)
    require_new(folder)
    built = open_built(selection, artifact, stages)
    selection, backend, artifact, source = built.selection, built.backend, built.artifact, built.source
    compiled = compiled_again(artifact, built.traced, selection, backend, built.calibration, stages)
    with stages("reduce"), ExitStack() as stack:
        opened = _opened(stage, selection, backend, compiled, stages, stack)
        parts = (
            smallest(built.model, known, stage.budget.max_relative_error, opened)
            for known in _known(compiled, stage, selection)
        )
        part = next((one for one in parts if one is not None), None)
    if part is None:
        raise InputError(f"{stage.name} fails, but no part of the file does on ordinary and extreme rows")
    found = _exported(part, stage, artifact, selection, cache.weights_sha256(source.bare.network))
    with stages("write"), in_one_step(folder) as draft:
        lines = trtexec.write(found, draft)
        files = sorted(os.listdir(draft))
    errors = {name: error if math.isfinite(error) else None for name, error in part.errors.items()}
    document = {"folder": str(folder), "format": "trtexec", "files": files, "commands": lines}
    return document | {"part": found.part, "nodes": list(part.nodes), "errors": errors}


def _of_the_file(verification: Verification) -> Stage:
    from mlpdeploy.evidence.proof.ladder import EMITTED, ENGINE, TYPED

    stage = verification.first_failed
    if stage is None:
        raise InputError("nothing failed")
    if stage.name not in (TYPED, EMITTED, ENGINE):
        raise InputError(f"what fails is the stage {stage.name!r}, before there is a file")
    return stage


def _known(compiled: Compiled, stage: Stage, selection: Selection) -> Iterator[Arrays]:
    """The right value of every operation, for a batch of ordinary rows and for extreme ones: that of the plan.

    Where the plan itself is what fails, they are those of float32.
    """
    from mlpdeploy.evidence.proof.ladder import TYPED
    from mlpdeploy.evidence.proof.reference import distinct_rows
    from mlpdeploy.evidence.proof.runs import values

    inputs, batch = compiled.typed.inputs, selection.profile.opt
    real = None if compiled.calibration is None else compiled.calibration.rows
    graph = (compiled.balanced if stage.name == TYPED else compiled.typed).module
    names = [spec.name for spec in compiled.typed.outputs]
    for rows in (distinct_rows(inputs, real, batch, selection.seed), *_extremes(inputs, batch, selection.seed)):
        yield values(graph, inputs, names, rows)


def _extremes(inputs: Sequence[TensorSpec], batch: int, seed: int) -> Iterator[Arrays]:
    """Extreme rows, so many at a time; the last batch is filled up with the first rows."""
    import numpy as np

    from mlpdeploy.graph.precision.extremes import extremes

    found = extremes(inputs, np.random.default_rng(seed))
    for start in range(0, len(found.names), batch):
        places = np.arange(start, start + batch) % len(found.names)
        yield {name: values[places] for name, values in found.arrays.items()}


def _opened(
    stage: Stage, selection: Selection, backend: Backend, compiled: Compiled, stages: Stages, stack: ExitStack
) -> Open:
    """What runs a part as the stage ran the whole: ONNX Runtime, or an engine that is built of it."""
    from mlpdeploy.evidence.proof.ladder import ENGINE
    from mlpdeploy.evidence.proof.runs import onnx_run

    if stage.name != ENGINE:
        return lambda model: onnx_run(model, 1)
    if not backend.reads_file:
        raise InputError(f"{backend.name} makes its engine of the graph and not of the file")

    def engine(model: onnx.ModelProto) -> Run:
        from mlpdeploy.engine.onnx.emit import Emitted

        typed = replace(compiled.typed, inputs=_specs(model.graph.input), outputs=_specs(model.graph.output))
        place = stack.enter_context(temporary_folder())
        built = backend.build(Emitted(model, typed), selection.request(), Path(place), stages)
        return stack.enter_context(backend.load(built.engine, built.facts))

    return engine


def _specs(values: Any) -> tuple[TensorSpec, ...]:
    """Inputs or outputs of a file as specs, without their rows."""
    import torch
    from onnx import helper

    from mlpdeploy.graph.tracing.trace import TensorSpec

    found = []
    for value in values:
        kind = value.type.tensor_type
        dtype = getattr(torch, helper.tensor_dtype_to_np_dtype(kind.elem_type).name)
        found.append(TensorSpec(value.name, tuple(dim.dim_value for dim in kind.shape.dim[1:]), dtype))
    return tuple(found)


def _ports(values: Any) -> tuple[Port, ...]:
    return tuple(Port(spec.name, spec.shape, str(spec.dtype).removeprefix("torch.")) for spec in _specs(values))


def _exported(part: Part, stage: Stage, artifact: Artifact, selection: Selection, weights: str) -> Exported:
    """The part as what leaves, under the name of what it is."""
    ends = (selection.profile.min, selection.profile.max)
    signature = Signature(_ports(part.model.graph.input), _ports(part.model.graph.output), *ends)
    worst = max(part.errors.values())
    budget = stage.budget.max_relative_error
    told = f"{', '.join(part.nodes)}; {stage.name} is off by {worst:.2g} there, {budget:g} is allowed"
    model, inputs, outputs = part.model, part.inputs, part.outputs
    allowed = tolerances(outputs, budget)
    return Exported(artifact.manifest, selection, model, signature, inputs, outputs, allowed, weights, part=told)
