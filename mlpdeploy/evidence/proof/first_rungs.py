"""The first rungs of the ladder: the network against itself (see `itself`).

twice          the same rows again, in float64
row by row     the rows of a batch, in order and permuted, against each alone, in float64
batch sizes    the same at the sizes that the engine is built for, in float32; float64 decides where that misses
its trace      the graph that torch.export made of it, in float64
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import nn

from mlpdeploy.engine.backend import Progress
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.runner import Arrays
from mlpdeploy.evidence.proof import culprit
from mlpdeploy.evidence.proof.compare import compare, usual
from mlpdeploy.evidence.proof.edges import Conditioning, Edges, Factor, edges_of, off_at
from mlpdeploy.evidence.proof.itself import LOW, ORDER, ROUNDED, ROWS, mixes, repeats, strays, taken
from mlpdeploy.evidence.proof.ladder import ALONE, FAILED, FLOAT64_BUDGET, SIZES, TRACED, TWICE, Check, Stage
from mlpdeploy.evidence.proof.reference import Reference, distinct_rows, require_finite
from mlpdeploy.evidence.proof.rung import Finding, checked, climb
from mlpdeploy.evidence.proof.runs import SINGLE, Outputs, Run, float64_run, in_batches, module_run, shaken_run
from mlpdeploy.evidence.proof.wide import widened
from mlpdeploy.graph.tracing.place import apart
from mlpdeploy.graph.tracing.trace import TensorSpec, Traced
from mlpdeploy.zoo.recipe import Budget

FLOAT32_BUDGET = Budget(max_relative_error=ROUNDED, min_top1_agreement=1.0)
FEW = 2
"""Rows on which the rewritten graph is held against the network in float64."""
LOW_BUDGET = Budget(max_relative_error=LOW, min_top1_agreement=1.0)
"""Of a network that computes in half precision by itself."""


class FirstRungs:
    """A network, its copy in float64, and the rows on which it is held against itself: `real` ones, or random.

    `low` says that it computes in half precision by itself.
    """

    def __init__(
        self,
        network: nn.Module,
        wide: nn.Module,
        inputs: Sequence[TensorSpec],
        names: Sequence[str],
        real: Arrays | None,
        seed: int,
        progress: Progress,
        *,
        low: bool,
    ) -> None:
        self.network, self.wide, self.inputs, self.names = network, wide, inputs, names
        self.rows = distinct_rows(inputs, real, ROWS, seed)
        self.seed, self.progress = seed, progress
        self.run: Run = float64_run(wide, inputs, names)
        self.narrow: Run = module_run(network, inputs, names, torch.float32)
        self.budget = LOW_BUDGET if low else FLOAT64_BUDGET

    @cached_property
    def together(self) -> Outputs:
        """What the network gives for the batch, in float64. Raises InputError where that is not finite."""
        found = self.run(self.rows)
        require_finite(found)
        return found

    @cached_property
    def alone(self) -> Outputs:
        """What it gives for each row alone."""
        # By a copy of its own: what it keeps from the batch must not help.
        return in_batches(float64_run(apart(self.wide), self.inputs, self.names), self.rows, SINGLE)

    @cached_property
    def edges(self) -> Edges:
        """The extreme rows, in float64."""
        return edges_of(self.run, self.inputs, self.seed, self.rows)

    @cached_property
    def exact(self) -> Reference:
        """A few rows with what the network gives for them in float64."""
        few = range(FEW)
        return Reference(taken(self.rows, few), taken(self.alone, few), self.edges)

    def factor(self, precision: str) -> Factor:
        """How much further off than ordinary rows extreme ones may be in a precision (see `edges`)."""
        return self._conditioning.at(precision)

    @cached_property
    def _conditioning(self) -> Conditioning:
        shaken = partial(shaken_run, self.wide, self.inputs, self.names)
        return Conditioning(shaken, self.edges, self.exact.usual)

    def twice(self) -> Stage:
        """The network, run again on the same rows."""

        def find() -> Iterator[Iterable[Finding]]:
            first = self.together
            yield self._checks(self.run(self.rows), first)

        stage = climb(TWICE, 1, find, self.budget, self.progress)
        return self._blamed(stage, repeats, lambda: culprit.changed(apart(self.network), self.inputs, self.rows))

    def row_by_row(self) -> Stage:
        """Rows beside others, in order and permuted, against the same rows alone."""

        def find() -> Iterator[Iterable[Finding]]:
            permuted = self.run(taken(self.rows, ORDER))
            yield self._checks(self.together, self.alone, permuted)
            mixed = Batch(1, len(self.edges.names), len(self.edges.names))
            budget = self.budget.max_relative_error
            yield off_at(self.run, self.edges, mixed, self.exact.usual, budget, self.factor("fp32"))

        stage = climb(ALONE, 2, find, self.budget, self.progress)
        return self._blamed(stage, mixes, lambda: culprit.mixed(self.network, self.inputs, self.rows))

    def at_sizes(self, reference: Reference, sizes: Sequence[int]) -> Stage:
        """The network at every batch size against its rows alone, which `reference` has in float32."""

        def find() -> Iterator[Iterable[Finding]]:
            for size in sizes:
                found = self._at_size(self.narrow, reference, size)
                if not all(check.reference.within(ROUNDED) for check in found):
                    exact = replace(reference, outputs=in_batches(self.run, reference.rows, SINGLE))
                    found = self._at_size(self.run, exact, size)
                yield found

        budget = FLOAT32_BUDGET if self.budget is FLOAT64_BUDGET else self.budget
        stage = climb(SIZES, len(sizes), find, budget, self.progress)
        missed = [check.batch for check in stage.checks if not check.reference.within(budget.max_relative_error)]
        size = (*missed, *sizes[len({check.batch for check in stage.checks}) :], max(sizes))[0]
        rows = taken(reference.rows, np.arange(size) % reference.count)
        return self._blamed(stage, mixes, lambda: culprit.mixed(self.network, self.inputs, rows))

    def its_trace(self, traced: Traced) -> Stage:
        """The graph that was made of the network."""

        def find() -> Iterator[Iterable[Finding]]:
            yield self._checks(float64_run(widened(traced).module, self.inputs, self.names)(self.rows), self.together)

        def where() -> str:
            return culprit.strayed(self.network, traced, self.rows)

        return self._blamed(climb(TRACED, 1, find, self.budget, self.progress), strays, where)

    def _at_size(self, run: Run, reference: Reference, size: int) -> list[Check]:
        return checked(run, reference, size, np.random.default_rng(self.seed), permuting=False)

    def _checks(self, found: Outputs, expected: Outputs, permuted: Outputs | None = None) -> list[Check]:
        checks = []
        for name, values in expected.items():
            size, other = usual(expected, name), None
            if permuted is not None:
                other = compare(permuted[name], found[name][list(ORDER)], size)
            checks.append(Check(ROWS, name, compare(found[name], values, size), other, None))
        return checks

    def _blamed(self, stage: Stage, said: Callable[[str, str], str], why: Callable[[], str]) -> Stage:
        """A stage that failed says which operation did it."""
        if stage.status != FAILED:
            return stage
        return replace(stage, reason=f"{said(type(self.network).__name__, why())} ({stage.reason})")
