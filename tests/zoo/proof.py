"""Proof that a recipe works, by the product's own ladder, at batches that are odd, small and large."""

from __future__ import annotations

from mlpdeploy import pipeline
from mlpdeploy.engine.emit import emit
from mlpdeploy.evidence.ladder import Verification
from mlpdeploy.evidence.verify import verify
from mlpdeploy.progress import Stages
from mlpdeploy.selection import Selection

BATCH = "1:2:5"


def climb(selection: Selection) -> Verification:
    """The ladder of a selection without its engine: rewritten in float64, typed, and emitted through ONNX Runtime."""
    stages = Stages()
    source = pipeline.load(selection, stages)
    compiled = pipeline.compile_network(pipeline.trace_network(source, stages), selection, stages)
    budget = source.recipe.budgets[selection.precision]
    emitted = emit(compiled.typed)
    return verify(
        source.network, compiled.rewritten, compiled.typed, emitted.model, None, "the engine is not tested here",
        selection.profile, budget, None, selection.seed, stages,
    )  # fmt: skip


def prove(name: str, precision: str = "fp16") -> None:
    """Every stage of a recipe's ladder passes at 1, 2 and 5 rows."""
    found = climb(Selection(name, precision=precision, batch=BATCH))
    assert found.passed, "; ".join(f"{stage.name}: {stage.reason}" for stage in found.stages)
    assert tuple(found.sizes) == (1, 2, 5)
