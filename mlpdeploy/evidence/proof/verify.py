"""The ladder of verification: what left the compiler, stage by stage, against the network that the user gave.

    network  ──  itself, run again                      what no engine can follow: chance, and state between calls
             ──  its rows alone, float64                rows that depend on each other
             ──  its rows alone, at every batch size    what is decided by how many rows there are
             ──  its trace, float64                     what the trace did not follow
    network, float64  ──  rewritten graph, float64      a rewrite is algebra: 1e-9
    network, float32  ──  typed graph, PyTorch          what the precision costs
                      ──  emitted ONNX, ONNX Runtime    what the emitter did
                      ──  engine                        what the backend did, where it can run

Each stage behind the network's own runs at the smallest, the optimal and the largest batch, and again with the rows
permuted, so a failure names the stage that broke. A large batch repeats a few distinct rows in random order: every row
has an exact reference, the reference runs on the distinct rows only, and rows are held against the same rows elsewhere
in the batch without another run. Extreme rows (flat, black, white, one hot
element, a hundred times larger) run in a batch of their own, ordinary ones among them (see `edges`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import onnx
import torch
from torch import fx, nn

from mlpdeploy.engine.backend import Progress
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.runner import Arrays
from mlpdeploy.evidence.proof.answers import as_scores
from mlpdeploy.evidence.proof.culprit import own_precision
from mlpdeploy.evidence.proof.edges import Factor
from mlpdeploy.evidence.proof.first_rungs import FirstRungs
from mlpdeploy.evidence.proof.itself import constants
from mlpdeploy.evidence.proof.ladder import (
    EMITTED,
    ENGINE,
    FAILED,
    FLOAT64_BUDGET,
    NOT_EXECUTED,
    REWRITTEN,
    TYPED,
    Stage,
    Verification,
)
from mlpdeploy.evidence.proof.reference import Reference, as_made_by, in_float32
from mlpdeploy.evidence.proof.rung import Finding, accuracy, climb, held_against
from mlpdeploy.evidence.proof.runs import CONVERSIONS, Run, float64_run, module_run, onnx_run, specified_run, typed_run
from mlpdeploy.evidence.proof.wide import widened
from mlpdeploy.graph.precision.typed import Typed
from mlpdeploy.graph.quantisation.equalise import equalise
from mlpdeploy.graph.quantisation.sites import Quantisation
from mlpdeploy.graph.rewrite import Rewritten, rewrite_as
from mlpdeploy.graph.tracing.rows import alike
from mlpdeploy.graph.tracing.trace import TensorSpec, Traced, trace
from mlpdeploy.precisions import CODED
from mlpdeploy.selection.service import ServiceChoice
from mlpdeploy.system.guest import copied
from mlpdeploy.zoo.recipe import Budget

SCORES = ServiceChoice()
"""An engine that gives what its network gives."""
UNCLIMBED = (
    "the rest of the ladder was not climbed: no engine of a network that is not one function of each row is right"
)


class _Rung(NamedTuple):
    """What is run and what it is held against; without a `factor` its extreme rows only have to be finite."""

    name: str
    load: Callable[[], Run]
    against: Reference
    sizes: Sequence[int]
    allowed: Budget
    factor: Factor | None


def verify(
    network: nn.Module,
    rewritten: Rewritten,
    typed: Typed,
    model: onnx.ModelProto,
    engine: Run | None,
    engine_reason: str | None,
    batch: Batch,
    budget: Budget,
    samples: Arrays | None,
    seed: int,
    progress: Progress,
    *,
    labels: np.ndarray | None = None,
    cpu_budget: Budget | None = None,
    beside: tuple[str, Budget] | None = None,
    quantisation: Quantisation | None = None,
    rows: Arrays | None = None,
    traced: Traced | None = None,
    service: ServiceChoice = SCORES,
) -> Verification:
    """Climb the ladder.

    `engine` runs the built engine, or is None with `engine_reason` saying why it cannot run here. `samples` are real
    inputs by name (n, ...), with `labels` (n,) where known: with them the top-1 agreement is gated, without them (on
    random inputs, where margins mean little) it is only reported. `cpu_budget` holds for the stages that PyTorch and
    ONNX Runtime execute, where it differs: no CPU has TF32, so they compute its graph in FP32.
    `beside` are the precision and the budget of activations where only weights are codes: what comes after the typed
    graph is held to these.
    `quantisation` is that which a graph of 8-bit codes was equalised and typed with. Of such a graph, the typed one is
    compared with the network, and what comes after it with the typed one: so the rung that fails lost the accuracy.

    `rows` are inputs to compare on where there are no samples, instead of random ones: ranges hold for what they were
    calibrated on. `traced` is what was rewritten; without it, the network is traced again. `service` says what the
    model and the engine give in place of the scores that `typed` does.

    Raises InputError where the samples do not fit the network, or its own output is not finite.
    """
    if engine is None and not engine_reason:
        raise ValueError("without an engine, verify needs the reason why it cannot run")
    names = [spec.name for spec in typed.outputs]
    sizes, real = batch.sizes(), rows if samples is None else samples
    wide = copied(network).double()
    traced = traced or trace(network, rewritten.inputs)
    low = own_precision(traced.module) is not None
    first = FirstRungs(network, wide, rewritten.inputs, names, real, seed, progress, low=low)
    scored = partial(as_scores, network=module_run(network, typed.inputs, names, torch.float32), name=names[0],
                     service=service)  # fmt: skip
    stages = [first.twice(), first.row_by_row()]
    reference = None
    if not _failed(stages):
        reference = in_float32(network, typed.inputs, names, samples, labels, batch, seed, real, first.edges)
        stages += [first.at_sizes(reference, sizes), first.its_trace(traced)]
    verification = Verification(
        precision=typed.precision,
        stages=tuple(stages),
        sizes=sizes,
        rows=0 if reference is None else reference.count,
        inputs="images" if samples is not None else "random" if rows is None else "calibration",
        seed=seed,
        reference_accuracy=None if reference is None else accuracy(reference.image_outputs, labels),
        notes=() if reference is None else (*_of_rows(reference), *reference.edges.notes()),
    )
    if reference is None or _failed(stages):
        return replace(verification, notes=(*verification.notes, UNCLIMBED))

    coded, on_cpu = typed.precision in CODED, cpu_budget or budget
    by_pytorch = typed_run(typed.module, typed.inputs, names)
    after = as_made_by(by_pytorch, reference, batch) if coded else reference
    precision, allowed = beside or (typed.precision, budget)
    rounded, on_cpu_rounded = (first.factor(p) for p in (precision, "fp32" if cpu_budget else precision))
    rungs = [
        _exactly(first, traced, rewritten, quantisation, typed.inputs, sizes),
        # What codes lose is measured on ordinary rows: ranges hold for those, and extreme ones lie beyond.
        _Rung(TYPED, lambda: by_pytorch, reference, sizes, on_cpu, None if coded else on_cpu_rounded),
        _Rung(
            EMITTED,
            lambda: scored(onnx_run(model, torch.get_num_threads())),
            after,
            sizes,
            cpu_budget or allowed,
            on_cpu_rounded,
        ),
    ]
    if engine is not None:
        engine_run = scored(specified_run(engine, typed.inputs))
        rungs.append(_Rung(ENGINE, lambda: engine_run, after, sizes, allowed, rounded))
    stages += [_climb(rung, batch, seed, progress) for rung in rungs]
    if engine is None:
        reason = f"built, not executed: {engine_reason}"
        stages.append(Stage(ENGINE, NOT_EXECUTED, reason, allowed, (), None, 0.0))
    return replace(verification, stages=tuple(stages))


def _of_rows(reference: Reference) -> tuple[str, ...]:
    """What the reader should know of the rows, or of what the network makes of them."""
    if alike(reference.rows):
        return ("all rows that were compared are the same, so agreeing on them proves little: give others by --data",)
    return constants(reference.outputs)


def in_float64(
    network: nn.Module, traced: Traced, batch: Batch, seed: int, progress: Progress
) -> Callable[[Rewritten, Quantisation | None], Stage]:
    """What holds rewrites of one network against it in float64: the ladder's rung of that name, alone."""
    names, low = [spec.name for spec in traced.outputs], own_precision(traced.module) is not None
    first = FirstRungs(network, copied(network).double(), traced.inputs, names, None, seed, progress, low=low)

    def climbed(rewritten: Rewritten, quantisation: Quantisation | None) -> Stage:
        rung = _exactly(first, traced, rewritten, quantisation, traced.inputs, batch.sizes())
        return _climb(rung, batch, seed, progress)

    return climbed


def _exactly(
    first: FirstRungs,
    traced: Traced,
    rewritten: Rewritten,
    quantisation: Quantisation | None,
    inputs: Sequence[TensorSpec],
    sizes: Sequence[int],
) -> _Rung:
    """The rung of the rewritten graph in float64."""

    def run() -> Run:
        return float64_run(_rewritten_again(widened(traced), rewritten, quantisation), inputs, first.names)

    few = sorted({min(size, first.exact.count) for size in sizes})
    return _Rung(REWRITTEN, run, first.exact, few, FLOAT64_BUDGET, first.factor("fp32"))


def _failed(stages: Sequence[Stage]) -> bool:
    return any(stage.status == FAILED for stage in stages)


def _climb(rung: _Rung, batch: Batch, seed: int, progress: Progress) -> Stage:
    name, load, against, sizes, allowed, factor = rung
    steps, rng = len(sizes) + 1 + bool(against.images), np.random.default_rng(seed)
    budget = allowed.max_relative_error

    def find() -> Iterator[Iterable[Finding]]:
        return held_against(load, against, sizes, batch, budget, factor, rng)

    return climb(name, steps, find, allowed, progress)


def _rewritten_again(traced: Traced, rewritten: Rewritten, quantisation: Quantisation | None) -> fx.GraphModule:
    """The rewritten graph of the network in float64, from its trace.

    Rules compute new weights (folded scales, means of rows). Those of `rewritten` are rounded to float32, so the
    rules run again, on float64; and they must do to that graph what they did to the other.
    """
    twice = rewrite_as(traced, rewritten)
    again = (twice if quantisation is None else equalise(twice, quantisation.equalised)).module
    if _operations(again) != _operations(rewritten.module):
        raise ValueError("the rules rewrote the float64 network into another graph than the float32 network")
    return again


def _operations(module: fx.GraphModule) -> list[str]:
    """What is computed, in order; casts are left out, since `.float()` is one in float64 and none in float32."""
    called = [node.target for node in module.graph.nodes if node.op == "call_function"]
    return [str(target) for target in called if getattr(target, "overloadpacket", None) not in CONVERSIONS]
