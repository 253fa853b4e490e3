"""The extreme rows on the ladder: what the network itself makes of them, and how far off a stage may be there.

A flat row has a variance of 0, and what divides by its root multiplies every rounding by 1 / sqrt(epsilon), in the
network as in an engine. So a row may be off by the budget, times how much worse conditioned the network is there than
for an ordinary row: both are measured, with every operation of the network a rounding off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.runner import Arrays
from mlpdeploy.evidence.proof.compare import row_errors
from mlpdeploy.evidence.proof.ladder import Extreme
from mlpdeploy.evidence.proof.runs import SINGLE, Outputs, Run, in_batches
from mlpdeploy.graph.precision.extremes import extremes
from mlpdeploy.graph.tracing.trace import TensorSpec

ORDINARY = "an ordinary one beside them"
"""In a batch of extreme rows, which it must not notice."""

_BITS = {"fp32": 24, "tf32": 11, "fp16": 11, "bf16": 8, "int8": 8, "fp8": 4, "nvfp4": 2, "int4": 4}
ROUNDINGS = {precision: 2.0**-bits for precision, bits in _BITS.items()}
"""By precision, how far an operation's result is off."""

SHAKES = 8
"""Roundings at random of which the worst counts."""

Factor = Callable[[str, str], float]
"""How much further off than an ordinary row an output (the first) may be for a row (the second), by their names."""


@dataclass(frozen=True)
class Edges:
    """Extreme rows, ordinary ones between them, by their `names`; and the network's outputs for each alone.

    `finite` says by output which of them are: others are not compared. `raised` has the rows that were left out, since
    the network itself raises an error there, and which.
    """

    names: tuple[str, ...]
    rows: Arrays
    outputs: Outputs
    finite: Mapping[str, np.ndarray]
    raised: Mapping[str, str]

    def notes(self) -> tuple[str, ...]:
        """What the reader should know: where the network itself has no answer."""
        told = [f"the network itself raises {why} for the row {row!r}" for row, why in self.raised.items()]
        for name, whole in self.finite.items():
            without = [repr(row) for row, good in zip(self.names, whole, strict=True) if not good]
            if without:
                rows = f"row{'s' if len(without) > 1 else ''} {', '.join(without)}"
                told.append(f"output {name!r} of the network itself is not finite for the {rows}")
        return tuple(f"{one}: nothing is asked of an engine there" for one in told)

    def made_by(self, run: Run) -> Edges:
        """The same rows with the outputs of `run`, each alone."""
        if not self.names:
            return self
        outputs = in_batches(run, self.rows, SINGLE)
        return replace(self, outputs=outputs, finite={n: self.finite[n] & _finite(v) for n, v in outputs.items()})


def edges_of(run: Run, inputs: Sequence[TensorSpec], seed: int, ordinary: Arrays | None = None) -> Edges:
    """The extreme rows of a network that `run` computes, between the first of its `ordinary` rows where there are any.

    A row on which the network itself raises an error is left out.
    """
    found = extremes(inputs, np.random.default_rng(seed))
    names, rows = list(found.names), dict(found.arrays)
    for index, place in enumerate((0, len(names) // 2)):
        if ordinary is not None:
            names.insert(place, ORDINARY)
            one = {name: values[index % len(values)] for name, values in ordinary.items()}
            rows = {name: np.insert(values, place, one[name], axis=0) for name, values in rows.items()}
    raised, kept, parts = {}, [], []
    for index, name in enumerate(names):
        try:
            parts.append(run({n: values[index : index + 1] for n, values in rows.items()}))
            kept.append(index)
        except Exception as error:  # whatever the user's code raises
            raised[name] = type(error).__name__
    names, rows = [names[index] for index in kept], {name: values[kept] for name, values in rows.items()}
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    return Edges(tuple(names), rows, outputs, {name: _finite(values) for name, values in outputs.items()}, raised)


def off_at(
    run: Run, edges: Edges, batch: Batch, usual: Callable[[str], float], budget: float, factor: Factor | None
) -> tuple[Extreme, ...]:
    """How far off `run` is for each extreme row, in batches that mix them with ordinary ones.

    `usual` is the size of a row of each output. Without a `factor`, extreme rows only have to be finite.
    """
    if not edges.names:
        return ()
    together = Batch(batch.min, min(max(len(edges.names), batch.min), batch.max), batch.max)
    outputs, found = in_batches(run, edges.rows, together), []
    for output, expected in edges.outputs.items():
        whole = edges.finite[output]
        errors = np.zeros(len(whole))
        errors[whole] = row_errors(outputs[output][whole], expected[whole], usual(output))
        worst: dict[str, float] = {}
        for name, error, compared in zip(edges.names, errors, whole, strict=True):
            if compared:
                worst[name] = max(worst.get(name, 0.0), float(error))
        found += [Extreme(n, output, e, _allowed(output, n, e, budget, factor)) for n, e in worst.items()]
    return tuple(found)


def _allowed(output: str, name: str, error: float, budget: float, factor: Factor | None) -> float | None:
    """The budget; where a row misses it, what it may be off: None where that is anything finite."""
    if error <= budget or math.isinf(error) or name == ORDINARY:
        return budget
    times = math.inf if factor is None else factor(output, name)
    return None if math.isinf(times) else budget * times


class Conditioning:
    """How much worse conditioned the network is for each extreme row than for ordinary ones; measured when asked for.

    `shaken` gives the network computed with errors of so much at most; `exact` what it computes without.
    """

    def __init__(self, shaken: Callable[[float], Run], exact: Edges, usual: Callable[[str], float]) -> None:
        self._shaken, self._exact, self._usual = shaken, exact, usual
        self._known: dict[float, dict[tuple[str, str], float]] = {}

    def at(self, precision: str) -> Factor:
        """The factors for what computes in a precision."""
        by = ROUNDINGS[precision]

        def factor(output: str, name: str) -> float:
            if by not in self._known:
                self._known[by] = self._measure(by)
            return self._known[by][output, name]

        return factor

    def _measure(self, by: float) -> dict[tuple[str, str], float]:
        edges = self._exact
        factors: dict[tuple[str, str], float] = {}
        # Copies of one row beside each other: every element is off by a number of its own.
        copies = {name: np.repeat(values, SHAKES, axis=0) for name, values in edges.rows.items()}
        shaken = in_batches(self._shaken(by), copies, Batch(SHAKES, SHAKES, SHAKES))
        ordinary = np.array([name == ORDINARY for name in edges.names])
        for output, expected in edges.outputs.items():
            whole, size = edges.finite[output], self._usual(output)
            compared, wanted = np.repeat(whole, SHAKES), np.repeat(expected[whole], SHAKES, axis=0)
            errors = np.full(len(whole), math.inf)
            errors[whole] = row_errors(shaken[output][compared], wanted, size).reshape(-1, SHAKES).max(axis=1)
            usual = max(float(np.median(errors[ordinary])), by)
            factors |= {(output, n): max(1.0, float(e) / usual) for n, e in zip(edges.names, errors, strict=True)}
        return factors


def _finite(values: np.ndarray) -> np.ndarray:
    """Which rows are finite: (rows,)."""
    flat = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    return np.asarray(np.isfinite(flat).all(axis=1))
