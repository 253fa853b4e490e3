"""The ladder's last rung alone, for a search: engines of one network, each held against it as `verify` does."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from torch import nn

from mlpdeploy.engine.backend import Progress
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.runner import Arrays
from mlpdeploy.evidence.proof.answers import as_scores
from mlpdeploy.evidence.proof.culprit import own_precision
from mlpdeploy.evidence.proof.first_rungs import FirstRungs
from mlpdeploy.evidence.proof.ladder import ENGINE, Stage
from mlpdeploy.evidence.proof.reference import Reference, as_made_by, in_float32
from mlpdeploy.evidence.proof.rung import climb, held_against
from mlpdeploy.evidence.proof.runs import Run, module_run, specified_run, typed_run
from mlpdeploy.graph.precision.typed import Typed
from mlpdeploy.graph.tracing.trace import TensorSpec, Traced
from mlpdeploy.precisions import CODED
from mlpdeploy.selection.service import ServiceChoice
from mlpdeploy.system.guest import copied
from mlpdeploy.zoo.recipe import Budget


def in_engine(
    network: nn.Module,
    traced: Traced,
    batch: Batch,
    allowed: tuple[str, Budget],
    rows: Arrays | None,
    service: ServiceChoice,
    seed: int,
    progress: Progress,
) -> Callable[[Typed, Run], Stage]:
    """What holds an engine of a typed graph against the network, at all sizes of `batch`; of codes, against that graph.

    `allowed` are the precision of activations and its budget, `rows` what 8-bit codes were calibrated on, `service`
    what the engine gives in place of scores.
    """
    names = [spec.name for spec in traced.outputs]
    low = own_precision(traced.module) is not None
    first = FirstRungs(network, copied(network).double(), traced.inputs, names, rows, seed, progress, low=low)
    precision, budget = allowed

    @cache
    def reference(inputs: tuple[TensorSpec, ...]) -> Reference:
        return in_float32(network, inputs, names, None, None, batch, seed, rows, first.edges)

    def climbed(typed: Typed, engine: Run) -> Stage:
        against = reference(tuple(typed.inputs))
        if typed.precision in CODED:
            against = as_made_by(typed_run(typed.module, typed.inputs, names), against, batch)
        scores = module_run(network, typed.inputs, names, torch.float32)
        run = as_scores(specified_run(engine, typed.inputs), scores, names[0], service)
        sizes, rng, most = batch.sizes(), np.random.default_rng(seed), budget.max_relative_error
        find = partial(held_against, lambda: run, against, sizes, batch, most, first.factor(precision), rng)
        return climb(ENGINE, len(sizes) + 1, find, budget, progress)

    return climbed
