"""What verification found: frozen, stage by stage, with the budget that each stage had."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlpdeploy.evidence.proof.compare import Agreement, Comparison, round_up
from mlpdeploy.zoo.recipe import Budget

PASSED, FAILED, NOT_EXECUTED = "passed", "failed", "not executed"

TWICE = "network, twice"
ALONE = "network, row by row"
SIZES = "network, batch sizes"
TRACED = "network, its trace"
ITSELF = (TWICE, ALONE, SIZES, TRACED)
"""The network against itself: what no engine can be right about, where one of these fails."""

REWRITTEN = "rewritten graph, float64"
TYPED = "typed graph, PyTorch"
EMITTED = "emitted ONNX, ONNX Runtime"
ENGINE = "engine"

FLOAT64_BUDGET = Budget(max_relative_error=1e-9, min_top1_agreement=1.0)
"""A rewrite is algebra: in float64 it agrees with the network to rounding."""


def worst(comparisons: Sequence[Comparison]) -> Comparison:
    """The comparison that is furthest off, of one or more."""
    return max(comparisons, key=lambda c: c.max_relative)


@dataclass(frozen=True)
class Check:
    """One output at one batch size.

    `reference` compares it with the network. `permuted` compares the output of the permuted batch with the permuted
    output; None where a batch of one has nothing to permute. `agreement` is None where the output is no logits.
    """

    batch: int
    output: str
    reference: Comparison
    permuted: Comparison | None
    agreement: Agreement | None

    @property
    def worst(self) -> Comparison:
        """The comparison that is furthest off."""
        return worst([c for c in (self.reference, self.permuted) if c is not None])


@dataclass(frozen=True)
class Extreme:
    """One output for one extreme row, which may be `allowed` far off, relative like a check's.

    `error` is infinite where a value is not finite. `allowed` is the budget, or more where the row is worse conditioned
    in the network itself than a random one; None where nothing but finite values is asked for.
    """

    row: str
    output: str
    error: float
    allowed: float | None

    @property
    def passed(self) -> bool:
        """Whether its values are finite, and near enough."""
        return math.isfinite(self.error) and (self.allowed is None or self.error <= self.allowed)

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON values."""
        return asdict(self) | {"error": _finite(self.error), "passed": self.passed}


@dataclass(frozen=True)
class OnImages:
    """A stage on the images of `--data`; accuracy is None without labels."""

    reference: Comparison
    agreement: Agreement | None
    accuracy: float | None


@dataclass(frozen=True)
class Stage:
    """One rung. `reason` says why it failed or was not executed; empty where it passed."""

    name: str
    status: str
    reason: str
    budget: Budget
    checks: tuple[Check, ...]
    images: OnImages | None
    seconds: float
    extremes: tuple[Extreme, ...] = ()

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Every comparison that the budget gates."""
        images = () if self.images is None else (self.images.reference,)
        return (*(check.worst for check in self.checks), *images)

    @property
    def max_relative(self) -> float | None:
        """The worst relative error of all checks; None where nothing was compared."""
        return max((c.max_relative for c in self.comparisons), default=None)

    @property
    def passing_tolerance(self) -> float | None:
        """The tolerance that would have passed; None where no tolerance would have, or nothing was compared."""
        return _passing(self.comparisons, self.extremes, self.budget)

    def to_json(self) -> dict[str, Any]:
        """Its fields and findings as JSON values."""
        return {
            "name": self.name,
            "status": self.status,
            "reason": self.reason,
            "budget": asdict(self.budget),
            "max_relative": _finite(self.max_relative),
            "passing_tolerance": self.passing_tolerance,
            "seconds": round(self.seconds, 3),
            "checks": [
                {
                    "batch": check.batch,
                    "output": check.output,
                    "reference": check.reference.to_json(),
                    "permuted": None if check.permuted is None else check.permuted.to_json(),
                    "agreement": None if check.agreement is None else asdict(check.agreement),
                }
                for check in self.checks
            ],
            "extremes": [extreme.to_json() for extreme in self.extremes],
            "images": None
            if self.images is None
            else {
                "reference": self.images.reference.to_json(),
                "agreement": None if self.images.agreement is None else asdict(self.images.agreement),
                "accuracy": self.images.accuracy,
            },
        }


@dataclass(frozen=True)
class Verification:
    """The whole ladder, and what it was climbed with.

    `rows` distinct rows of `inputs` (`random`, `images` or `calibration`) made up every batch; `data` says where the
    real ones are from, how many they were and how they were prepared. `notes` are warnings to the reader.
    """

    precision: str
    stages: tuple[Stage, ...]
    sizes: tuple[int, ...]
    rows: int
    inputs: str
    seed: int
    reference_accuracy: float | None
    notes: tuple[str, ...]
    data: tuple[str, ...] = ()

    def __repr__(self) -> str:
        sizes = ", ".join(map(str, self.sizes))
        return f"<Verification in {self.precision} at batch {sizes}: {self.verdict()}>"

    @property
    def passed(self) -> bool:
        """Whether no stage failed; a stage that was not executed is not a failure."""
        return self.first_failed is None

    @property
    def first_failed(self) -> Stage | None:
        """The stage that broke it: the first one that missed its budget."""
        return next((stage for stage in self.stages if stage.status == FAILED), None)

    def verdict(self) -> str:
        """One line: that it passed, or which stage missed its budget first and what would have passed."""
        stage = self.first_failed
        if stage is not None:
            return f"{stage.name}: {stage.reason}"
        skipped = [stage.name for stage in self.stages if stage.status == NOT_EXECUTED]
        return "passed" + (f" ({', '.join(skipped)} not executed)" if skipped else "")

    def to_json(self) -> dict[str, Any]:
        """The document that `verification.json` holds."""
        failed = self.first_failed
        return {
            "passed": self.passed,
            "verdict": self.verdict(),
            "first_failed": None if failed is None else failed.name,
            "passing_tolerance": None if failed is None else failed.passing_tolerance,
            "precision": self.precision,
            "sizes": list(self.sizes),
            "rows": self.rows,
            "inputs": self.inputs,
            "data": list(self.data),
            "seed": self.seed,
            "reference_accuracy": self.reference_accuracy,
            "notes": list(self.notes),
            "stages": [stage.to_json() for stage in self.stages],
        }


def judge(
    checks: tuple[Check, ...], images: OnImages | None, allowed: Budget, extremes: tuple[Extreme, ...] = ()
) -> str:
    """Why a stage with these findings fails its budget, in one line: the first miss, and the tolerance that would
    have passed all of them. Empty where the stage passes."""
    found: list[tuple[str, Comparison]] = []
    for check in checks:
        where = f"output {check.output!r} at batch {check.batch}"
        found.append((where, check.reference))
        if check.permuted is not None:
            found.append((f"permuting the rows does not permute {where}: it", check.permuted))
    if images is not None:
        found.append(("the output on the images", images.reference))
    advice = _advice([comparison for _, comparison in found], extremes, allowed)
    for where, comparison in found:
        if not comparison.finite:
            return f"{where} holds NaN or infinity in row {comparison.worst_row}"
        if not comparison.within(allowed.max_relative_error):
            missed = f"{where} is off by {comparison.max_relative:.1e} relative"
            return f"{missed}, the budget is {allowed.max_relative_error:.1e} ({advice})"
    for extreme in extremes:
        where = f"output {extreme.output!r} for the row {extreme.row!r}"
        if not math.isfinite(extreme.error):
            return f"{where} holds NaN or infinity, where the network's own is finite"
        if not extreme.passed:
            return f"{where} is off by {extreme.error:.1e} relative, allowed are {extreme.allowed:.1e} ({advice})"
    if images is not None and images.agreement is not None and images.agreement.top1 < allowed.min_top1_agreement:
        kept = f"{images.agreement.top1:.2%} of {images.agreement.images} images keep their top-1 class"
        return f"{kept}, the budget asks for {allowed.min_top1_agreement:.2%}"
    return ""


def _advice(comparisons: Sequence[Comparison], extremes: Sequence[Extreme], allowed: Budget) -> str:
    tolerance = _passing(comparisons, extremes, allowed)
    return "no tolerance would have passed" if tolerance is None else f"{tolerance:.1e} would have passed"


def _passing(comparisons: Sequence[Comparison], extremes: Sequence[Extreme], allowed: Budget) -> float | None:
    """The budget, to two digits, with which all of this would have passed: what an extreme row may be off grows with
    it. None where no budget would have done, or there is nothing."""
    budget = allowed.max_relative_error
    needed = [one.max_relative for one in comparisons]
    needed += [one.error * (budget / one.allowed if one.allowed else 1) for one in extremes if not one.passed]
    return round_up(max(needed)) if needed and math.isfinite(max(needed)) else None


def _finite(value: float | None) -> float | None:
    return None if value is None or value == math.inf else value
