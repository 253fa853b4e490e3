"""The ladder of verification: what left the compiler, stage by stage, against the network that the user gave.

    network, float64  ──  rewritten graph, float64      a rewrite is algebra: 1e-9
    network, float32  ──  typed graph, PyTorch          what the precision costs
                      ──  emitted ONNX, ONNX Runtime    what the emitter did
                      ──  engine                        what the backend did, where it can run

Each stage runs at the smallest, the optimal and the largest batch, and again with the rows permuted, so a failure
names the stage that broke. A large batch repeats a few distinct rows in random order: every row has an exact
reference, and the reference runs on the distinct rows only.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx
import torch
from torch import fx, nn

from mlpdeploy.engine.backend import Arrays, Batch, Progress
from mlpdeploy.errors import MlpdeployError
from mlpdeploy.evidence.compare import agreement, compare, is_logits, usual
from mlpdeploy.evidence.ladder import (
    EMITTED,
    ENGINE,
    FAILED,
    FLOAT64_BUDGET,
    NOT_EXECUTED,
    PASSED,
    REWRITTEN,
    TYPED,
    Check,
    OnImages,
    Stage,
    Verification,
    judge,
)
from mlpdeploy.evidence.reference import Reference, as_made_by, in_batches, in_float32, in_float64
from mlpdeploy.evidence.runs import CONVERSIONS, Outputs, Run, float64_run, onnx_run, specified_run, typed_run
from mlpdeploy.graph.equalise import equalise
from mlpdeploy.graph.precision import Typed
from mlpdeploy.graph.quantise import Quantisation
from mlpdeploy.graph.rewrite import Rewritten, rewrite_as
from mlpdeploy.graph.trace import trace
from mlpdeploy.recipe import Budget


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
    quantisation: Quantisation | None = None,
    rows: Arrays | None = None,
) -> Verification:
    """Climb the ladder.

    `engine` runs the built engine, or is None with `engine_reason` saying why it cannot run here. `samples` are real
    inputs by name (n, ...), with `labels` (n,) where known: with them the top-1 agreement is gated, without them (on
    random inputs, where margins mean little) it is only reported. `cpu_budget` holds for the stages that PyTorch and
    ONNX Runtime execute, where it differs: no CPU has TF32, so they compute its graph in FP32.
    `quantisation` is that which an INT8 graph was equalised and typed with. Of INT8, the typed graph is compared with
    the network, and what comes after it with the typed graph: so the rung that fails is the one that lost the accuracy.

    `rows` are inputs to compare on where there are no samples, instead of random ones: INT8 holds for what it was
    calibrated on.

    Raises InputError where the samples do not fit the network, or its own output is not finite.
    """
    if engine is None and not engine_reason:
        raise ValueError("without an engine, verify needs the reason why it cannot run")
    names = [spec.name for spec in typed.outputs]
    sizes = batch.sizes()
    reference = in_float32(network, typed.inputs, names, samples, labels, batch, seed, rows)
    wide = copy.deepcopy(network).double()
    exact = in_float64(wide, typed.inputs, names, reference)
    on_cpu = cpu_budget or budget

    def climb(name: str, load: Callable[[], Run], against: Reference, allowed: Budget) -> Stage:
        fitting = sorted({min(size, against.count) for size in sizes}) if against is exact else sizes
        return _stage(name, load, against, fitting, batch, allowed, np.random.default_rng(seed), progress)

    def rewritten_run() -> Run:
        again = _rewritten_again(wide, rewritten, quantisation)
        return float64_run(again, typed.inputs, names)

    by_pytorch = typed_run(typed.module, typed.inputs, names)
    after = reference if quantisation is None else as_made_by(by_pytorch, reference, batch)
    stages = [
        climb(REWRITTEN, rewritten_run, exact, FLOAT64_BUDGET),
        climb(TYPED, lambda: by_pytorch, reference, on_cpu),
        climb(EMITTED, lambda: onnx_run(model, torch.get_num_threads()), after, on_cpu),
    ]
    if engine is not None:
        engine_run = specified_run(engine, typed.inputs)
        stages.append(climb(ENGINE, lambda: engine_run, after, budget))
    else:
        reason = f"built, not executed: {engine_reason}"
        stages.append(Stage(ENGINE, NOT_EXECUTED, reason, budget, (), None, 0.0))
    return Verification(
        precision=typed.precision,
        stages=tuple(stages),
        sizes=sizes,
        rows=reference.count,
        inputs="images" if samples is not None else "random" if rows is None else "calibration",
        seed=seed,
        reference_accuracy=_accuracy(reference.image_outputs, labels),
        notes=_notes(reference),
    )


def _stage(
    name: str,
    load: Callable[[], Run],
    against: Reference,
    sizes: Sequence[int],
    batch: Batch,
    allowed: Budget,
    rng: np.random.Generator,
    progress: Progress,
) -> Stage:
    """Run one rung; what a stage raises is its failure, and the next stage still runs."""
    began, checks, images, total = time.monotonic(), [], None, len(sizes) + bool(against.images)
    progress.step(name, 0, total)
    try:
        run = load()
        for done, size in enumerate(sizes, 1):
            checks += _check(run, against, size, rng)
            progress.step(name, done, total)
        if against.images:
            images = _on_images(run, against, batch)
            progress.step(name, total, total)
        reason = judge(tuple(checks), images, allowed)
    except MlpdeployError:
        raise
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        reason = f"it raised {type(error).__name__}: {first}"
    return Stage(name, FAILED if reason else PASSED, reason, allowed, tuple(checks), images, time.monotonic() - began)


def _check(run: Run, against: Reference, size: int, rng: np.random.Generator) -> list[Check]:
    """Every output at one batch size, in order and permuted."""
    order = _order(size, against.count, rng)
    found = run({name: values[order] for name, values in against.rows.items()})
    shuffle = shuffled = None
    if size > 1:
        shuffle = _derangement(size, rng)
        shuffled = run({name: values[order[shuffle]] for name, values in against.rows.items()})
    checks = []
    for name, expected in against.outputs.items():
        comparison = compare(found[name], expected[order], against.usual(name))
        permuted = None
        if shuffled is not None and comparison.finite:
            permuted = compare(shuffled[name], found[name][shuffle], against.usual(name))
        ranked = agreement(found[name], expected[order]) if is_logits(expected) else None
        checks.append(Check(size, name, comparison, permuted, ranked))
    return checks


def _order(size: int, distinct: int, rng: np.random.Generator) -> np.ndarray:
    """Which distinct row stands where: all of them as often as each other, in random order."""
    return rng.permutation(np.arange(size) % distinct)


def _derangement(size: int, rng: np.random.Generator) -> np.ndarray:
    """A random permutation of two rows or more that leaves no row in its place (a rotation in random labels)."""
    labels = rng.permutation(size)
    permutation = np.empty(size, dtype=np.int64)
    permutation[labels] = np.roll(labels, 1)
    return permutation


def _on_images(run: Run, against: Reference, batch: Batch) -> OnImages:
    """The stage on the real images, by the first output that reads as logits, else by the first."""
    outputs = in_batches(run, against.images, batch)
    name = next((n for n, o in against.image_outputs.items() if is_logits(o)), next(iter(against.image_outputs)))
    expected = against.image_outputs[name]
    ranked = agreement(outputs[name], expected) if is_logits(expected) else None
    compared = compare(outputs[name], expected, usual(against.image_outputs, name))
    return OnImages(compared, ranked, _accuracy({name: outputs[name]}, against.labels))


def _rewritten_again(wide: nn.Module, rewritten: Rewritten, quantisation: Quantisation | None) -> fx.GraphModule:
    """The rewritten graph of the network in float64.

    Rules compute new weights (folded scales, means of rows). Those of `rewritten` are rounded to float32, so the
    rules run again, on float64; and they must do to that graph what they did to the other.
    """
    specs = [
        replace(spec, dtype=torch.float64 if spec.dtype.is_floating_point else spec.dtype) for spec in rewritten.inputs
    ]
    twice = rewrite_as(trace(wide, specs), rewritten)
    again = (twice if quantisation is None else equalise(twice, quantisation.equalised)).module
    if _operations(again) != _operations(rewritten.module):
        raise ValueError("the rules rewrote the float64 network into another graph than the float32 network")
    return again


def _operations(module: fx.GraphModule) -> list[str]:
    """What is computed, in order; casts are left out, since `.float()` is one in float64 and none in float32."""
    called = [node.target for node in module.graph.nodes if node.op == "call_function"]
    return [str(target) for target in called if getattr(target, "overloadpacket", None) not in CONVERSIONS]


def _accuracy(outputs: Outputs, labels: np.ndarray | None) -> float | None:
    logits = next((o for o in outputs.values() if is_logits(o)), None)
    return None if logits is None or labels is None else float((logits.argmax(axis=1) == labels).mean())


def _notes(reference: Reference) -> tuple[str, ...]:
    notes = []
    for name, values in reference.outputs.items():
        if len(values) > 1 and np.array_equal(values, np.broadcast_to(values[:1], values.shape)):
            notes.append(
                f"output {name!r} of the network is the same for every input, so agreeing with it proves little; "
                "a classifier whose head starts at zero does this: give a checkpoint"
            )
    return tuple(notes)
