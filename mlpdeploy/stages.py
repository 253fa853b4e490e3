"""The stages that the commands share, from a name to the graph whose every dtype is decided.

load -> trace_network -> check -> rewrite_network -> (calibrate_network) -> plan_network
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlpdeploy.artifact import decisions
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.engine.backend import Backend, backends
from mlpdeploy.engine.batch import Batch
from mlpdeploy.errors import NetworkError
from mlpdeploy.network.hub import fetching
from mlpdeploy.network.source import Source, source_of
from mlpdeploy.progress import Stages
from mlpdeploy.selection import Selection
from mlpdeploy.selection.choice import NetworkChoice

if TYPE_CHECKING:
    from mlpdeploy.calibration import Calibration
    from mlpdeploy.graph.precision.plan import Plan
    from mlpdeploy.graph.precision.typed import Typed
    from mlpdeploy.graph.quantisation.sites import Quantisation
    from mlpdeploy.graph.rewrite import Rewritten
    from mlpdeploy.graph.tracing.trace import Traced

MOST_SIZES = 256
"""Batch sizes that are tried one by one."""


@dataclass(frozen=True)
class Compiled:
    """What the graph compiler made of a network, each stage's result.

    `balanced` is the rewritten graph after ranges moved from activations to weights, for 8-bit codes; without these it
    is `rewritten` itself. `served` is the typed graph that gives the answers that were asked for; without any it is
    `typed` itself.
    """

    traced: Traced
    rewritten: Rewritten
    balanced: Rewritten
    plan: Plan
    typed: Typed
    served: Typed
    calibration: Calibration | None = None


def load(selection: NetworkChoice, stages: Stages) -> Source:
    """The network that was chosen, with its weights."""
    with stages("load"):
        if (line := fetching(selection)) is not None:
            stages.say(line)
        found = source_of(selection)
    for note in found.notes:
        stages.say(note)
    return found


def check(source: Source, traced: Traced, selection: Selection, stages: Stages) -> tuple[str, ...]:
    """Find the network one function of each row, and its trace the same; says and gives notes on its outputs."""
    with stages("check"):
        from mlpdeploy.evidence.proof import itself

        notes = itself.check(source.network, traced, selection.seed)
    for note in notes:
        stages.say(f"note: {note}")
    return notes


def trace_network(source: Source, stages: Stages, batch: Batch | None = None) -> Traced:
    """The network's graph, over inputs of the shapes that its recipe says, a batch axis in front.

    A network whose code fixes the batch is traced for the one size that `batch` says; without a `batch`, for the one
    that it takes. Raises NetworkError where it treats some sizes of a `batch` in another way than others.
    """
    with stages("trace"):
        from mlpdeploy.graph.tracing.guards import only_size
        from mlpdeploy.graph.tracing.trace import trace

        sizes = () if batch is None else (*range(batch.min, min(batch.max, MOST_SIZES)), *batch.sizes())
        specs, single = source.specs(), batch.max if batch is not None and batch.min == batch.max else None
        try:
            return trace(source.network, specs, sizes, source.output_names)
        except NetworkError as refused:
            only = single or only_size(source.network, specs, () if batch is None else batch.sizes())
            if only is None:
                raise
            if batch is not None and single is None:
                raise NetworkError(f"{refused}; its code fixes the batch: --batch {only} builds it") from refused
            try:
                fixed = [replace(spec, batch=only) for spec in specs]
                traced = trace(source.network, fixed, (), source.output_names)
            except NetworkError:
                raise refused from None
    stages.say(f"note: the network is traced at batch {only} alone, which its code fixes")
    return traced


def named_classes(traced: Traced, selection: Selection) -> tuple[str, ...] | None:
    """What the classes are called, where that was asked for.

    Raises InputError where the network cannot give the answers that were asked for, or the labels cannot be used.
    """
    if not selection.answers and selection.labels is None:
        return None
    from mlpdeploy.graph.precision.answers import require_scores
    from mlpdeploy.network.labels import read_labels

    (scores,) = require_scores(traced.outputs, selection.topk)
    return None if selection.labels is None else read_labels(selection.labels, scores.shape[0])


def rewrite_network(traced: Traced, selection: Selection, stages: Stages) -> Rewritten:
    """The same function as an engine likes it."""
    with stages("rewrite"):
        from mlpdeploy.graph.rewrite import rewrite

        backend = backends().get(selection.backend)
        off = () if backend is None else backend.off_for(selection.gpus)
        kernel = backend is not None and backend.carries_kernel(selection.gpus)
        return rewrite(traced, selection.disabled_in_graph, selection.enabled_rules, off, kernel)


def plan_network(
    traced: Traced,
    rewritten: Rewritten,
    selection: Selection,
    stages: Stages,
    calibration: Calibration | None = None,
    beside: str | None = None,
) -> Compiled:
    """The graph whose every dtype is decided: codes of 8 bits by their ranges, what lies `beside` them in that one."""
    with stages("plan precision"):
        from mlpdeploy.graph.precision.answers import answering
        from mlpdeploy.graph.precision.plan import plan, require_codes
        from mlpdeploy.graph.precision.typed import apply
        from mlpdeploy.graph.quantisation.equalise import equalise

        quantisation: Quantisation | None = None if calibration is None else calibration.quantisation
        balanced = rewritten if quantisation is None else equalise(rewritten, quantisation.equalised)
        samples, around = None if calibration is None else calibration.rows, beside or "fp32"
        planned = plan(balanced, selection.precision, selection.io, samples, quantisation, around)
        require_codes(balanced, planned)
        typed = apply(balanced, planned)
        served = answering(typed, selection.softmax, selection.topk)
    return Compiled(traced, rewritten, balanced, planned, typed, served, calibration)


def compiled_again(
    artifact: Artifact,
    traced: Traced,
    selection: Selection,
    backend: Backend,
    calibration: Calibration | None,
    stages: Stages,
) -> Compiled:
    """The graph that an artifact's engine was built from, made anew of what was decided and calibrated then."""
    chosen = decisions.applied(selection, decisions.of_manifest(artifact.manifest))
    rewritten = rewrite_network(traced, chosen, stages)
    return plan_network(traced, rewritten, chosen, stages, calibration, backend.beside(selection.precision))
