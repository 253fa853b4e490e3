"""Proof that a recipe works, by the product's own ladder, of one row and of three."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from torch import nn

from mlpdeploy.engine.backend import BuildRequest, backends
from mlpdeploy.engine.onnx.emit import emit
from mlpdeploy.evidence.proof.ladder import Verification
from mlpdeploy.evidence.proof.verify import verify
from mlpdeploy.network import random_weights
from mlpdeploy.progress import Stages
from mlpdeploy.selection import Selection
from mlpdeploy.stages import load, plan_network, rewrite_network, trace_network

BATCH = "1:1:3"
ENGINE = "openvino"


def ready(network: nn.Module, *size: int) -> nn.Module:
    """A small network as a factory returns it: with random weights, and the shape of the image that it takes."""
    random_weights.randomise(network, 0)
    network.default_cfg = {"input_size": size}  # type: ignore[assignment]
    return network


def climb(selection: Selection) -> Verification:
    """The ladder of a selection: rewritten in float64, typed, through ONNX Runtime, and executed by OpenVINO."""
    stages, backend = Stages(), backends()[ENGINE]
    selection = selection.with_backend(ENGINE)
    source = load(selection, stages)
    traced = trace_network(source, stages, selection.profile)
    compiled = plan_network(traced, rewrite_network(traced, selection, stages), selection, stages)
    emitted = emit(compiled.typed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        reason, engine = backend.available(), None
        if reason is None:
            request = BuildRequest(selection.precision, selection.profile, threads=1)
            built = backend.build(emitted, request, folder, stages)
            engine = stack.enter_context(backend.load(built.engine, built.facts))
        return verify(
            source.network, compiled.rewritten, compiled.typed, emitted.model, engine, reason, selection.profile,
            source.recipe.budgets[selection.precision], None, selection.seed, stages,
        )  # fmt: skip


def prove(name: str, precision: str = "fp16") -> None:
    """Every stage of a recipe's ladder passes at 1 and 3 rows."""
    found = climb(Selection(name, precision=precision, batch=BATCH))
    assert found.passed, "; ".join(f"{stage.name}: {stage.reason}" for stage in found.stages)
    assert tuple(found.sizes) == (1, 3)
