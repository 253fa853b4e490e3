"""What a run of `mlpdeploy regress` found: one gate for each thing that must not get worse, and the verdict of all."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mlpdeploy.errors import InputError
from mlpdeploy.evidence.documents.bench import REGRESS, SCHEMA
from mlpdeploy.evidence.documents.engine_facts import Facts
from mlpdeploy.evidence.latency.sequential_test import PASSED, REGRESSED, UNDECIDED, Slowdown

ACCEPTED, NOT_MEASURED = "accepted", "not measured"

LATENCY, SIZE, BUILD, LAYERS, TRANSPOSES, LAUNCHES, COPIES, LAUNCHED_TRANSPOSES, MEMORY, ACCURACY, VERIFICATION = (
    "latency",
    "engine-size",
    "build-time",
    "layers",
    "transposes",
    "launches",
    "copies",
    "launched-transposes",
    "memory",
    "accuracy",
    "verification",
)
GATES = (
    LATENCY, SIZE, BUILD, LAYERS, TRANSPOSES, LAUNCHES, COPIES, LAUNCHED_TRANSPOSES, MEMORY, ACCURACY, VERIFICATION,
)  # fmt: skip
"""What can be accepted by name."""
LAUNCHED = (LAUNCHES, COPIES, LAUNCHED_TRANSPOSES)
"""Gates of engines that tell their launches; where neither side does there are none."""

FAILED_STAGES = "failed"
"""The unit of the verification: stages that failed."""


@dataclass(frozen=True)
class Limits:
    """How much worse each may get: shares of the baseline's value, and for accuracy a share of 1."""

    slowdown: float = 0.03
    size: float = 0.01
    build: float = 1.0
    memory: float = 0.01
    accuracy: float = 0.005


@dataclass(frozen=True)
class Gate:
    """One gate. `change` is relative to the baseline (for accuracy: what was lost of 1), `low` and `high` its interval.

    `reason` says why it was not measured, what to do, or where it holds.
    """

    name: str
    verdict: str
    unit: str
    baseline: float | None
    candidate: float | None
    change: float | None
    limit: float
    low: float | None = None
    high: float | None = None
    batch: int | None = None
    reason: str = ""

    @property
    def label(self) -> str:
        """The gate in words: `latency, batch 8`."""
        words = self.name.replace("-", " ")
        return words if self.batch is None else f"{words}, batch {self.batch}"


@dataclass(frozen=True)
class BothSides:
    """Both sides at one batch size: the median of each load in milliseconds a call, two loads a pair."""

    batch: int
    baseline_ms: tuple[float, ...]
    medians_ms: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class Regress:
    """One run of `mlpdeploy regress`; `undecided` is what an undecided gate does, pass or fail.

    `baseline` says what the engine was held against, `facts` are the candidate's and `baseline_facts` the other's.
    """

    created: str
    network: dict[str, Any]
    selection: dict[str, Any]
    machine: dict[str, Any]
    conditions: dict[str, Any]
    settings: dict[str, Any]
    baseline: dict[str, Any]
    facts: Facts
    baseline_facts: Facts
    gates: tuple[Gate, ...]
    measurements: tuple[BothSides, ...]
    undecided: str

    def __repr__(self) -> str:
        gates = ", ".join(f"{gate.label} {gate.verdict}" for gate in self.gates)
        return f"<Regress of {self.network['name']}, {self.verdict}: {gates}>"

    @property
    def verdict(self) -> str:
        """The worst of its gates: regressed, undecided or passed."""
        verdicts = {gate.verdict for gate in self.gates}
        return next((v for v in (REGRESSED, UNDECIDED) if v in verdicts), PASSED)

    @property
    def passed(self) -> bool:
        """Whether the command exits 0."""
        return self.verdict == PASSED or (self.verdict == UNDECIDED and self.undecided == "pass")

    def to_json(self) -> dict[str, Any]:
        """The whole document as JSON values, its kind and schema first."""
        return {
            "kind": REGRESS,
            "schema": SCHEMA,
            "created": self.created,
            "verdict": self.verdict,
            "passed": self.passed,
            "network": self.network,
            "selection": self.selection,
            "machine": self.machine,
            "conditions": self.conditions,
            "settings": {**self.settings, "undecided": self.undecided},
            "baseline": self.baseline,
            "facts": self.facts.to_json(),
            "baseline_facts": self.baseline_facts.to_json(),
            "gates": [{**asdict(gate), "label": gate.label} for gate in self.gates],
            "measurements": [asdict(one) for one in self.measurements],
        }


def latency_gate(batch: int, found: Slowdown, baseline_ms: float, candidate_ms: float, reason: str = "") -> Gate:
    """The gate of one batch size; bounds that the pairs cannot give yet are None, and then the change is as well."""
    low, high = (bound if math.isfinite(bound) and bound > -1 else None for bound in (found.low, found.high))
    change = None if low is None or high is None else found.value
    what = {"unit": "ms", "baseline": baseline_ms, "candidate": candidate_ms, "change": change}
    return Gate(LATENCY, found.verdict, limit=found.limit, low=low, high=high, batch=batch, reason=reason, **what)  # type: ignore[arg-type]


def not_measured(name: str, unit: str, limit: float, reason: str, batch: int | None = None) -> Gate:
    """A gate that this machine or these sides cannot decide."""
    return Gate(name, NOT_MEASURED, unit, None, None, None, limit, batch=batch, reason=reason)


def fact_gates(baseline: Facts, candidate: Facts, limits: Limits) -> tuple[Gate, ...]:
    """The gates that need no clock, and that of the build's."""
    rows: tuple[tuple[str, str, float | None, float | None, float], ...] = (
        (SIZE, "bytes", baseline.engine_bytes, candidate.engine_bytes, limits.size),
        (BUILD, "s", baseline.build_seconds, candidate.build_seconds, limits.build),
        (LAYERS, "", baseline.layers, candidate.layers, 0.0),
        (TRANSPOSES, "", baseline.transposes, candidate.transposes, 0.0),
        (LAUNCHES, "", baseline.launches, candidate.launches, 0.0),
        (COPIES, "", baseline.copies, candidate.copies, 0.0),
        (LAUNCHED_TRANSPOSES, "", baseline.launched_transposes, candidate.launched_transposes, 0.0),
        (MEMORY, "bytes", baseline.memory_bytes, candidate.memory_bytes, limits.memory),
    )
    gates = []
    for name, unit, before, after, limit in rows:
        if before is after is None and name in LAUNCHED:
            continue
        if before is None or after is None:
            reason = candidate.reasons.get(name) or baseline.reasons.get(name) or "one side does not tell"
            gates.append(not_measured(name, unit, limit, reason))
            continue
        change = after / before - 1 if before else (math.inf if after else 0.0)
        verdict = REGRESSED if after > before * (1 + limit) else PASSED
        reason = f"at batch {candidate.memory_batch}" if name == MEMORY and candidate.memory_batch else ""
        known = change if math.isfinite(change) else None
        gates.append(Gate(name, verdict, unit, before, after, known, limit, reason=reason))
    return (*gates, _accuracy_gate(baseline, candidate, limits.accuracy), _verification_gate(baseline, candidate))


def accept(gates: Sequence[Gate], names: Collection[str]) -> tuple[Gate, ...]:
    """The gates with those of `names` that regressed accepted. Raises InputError for a name that is no gate's."""
    unknown = [name for name in names if name not in GATES]
    if unknown:
        raise InputError(f"--accept {unknown[0]}: is no gate; choose from {', '.join(GATES)}")
    return tuple(
        replace(gate, verdict=ACCEPTED) if gate.verdict == REGRESSED and gate.name in names else gate for gate in gates
    )


def percentage(option: str, text: str) -> float:
    """`3%` as 0.03. Raises InputError where the text is no percentage of zero or more."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*%\s*", text)
    if match is None:
        raise InputError(f"{option} {text!r}: is no percentage; give one such as 3%")
    return float(match[1]) / 100


def _verification_gate(baseline: Facts, candidate: Facts) -> Gate:
    """A candidate that computes something else than its network does not pass, whatever the baseline did."""
    before, after = baseline.failed_stages, candidate.failed_stages
    reason = candidate.reasons.get(VERIFICATION, "")
    if after is None:
        return not_measured(VERIFICATION, FAILED_STAGES, 0.0, f"the candidate is {reason or 'not verified'}")
    change = 0.0 if before == after else None
    verdict = REGRESSED if after else PASSED
    return Gate(VERIFICATION, verdict, FAILED_STAGES, before, after, change, 0.0, reason=reason)


def _accuracy_gate(baseline: Facts, candidate: Facts, limit: float) -> Gate:
    before, after = baseline.accuracy, candidate.accuracy
    if before is None or after is None:
        which, reasons = ("candidate", candidate.reasons) if after is None else ("baseline", baseline.reasons)
        return not_measured(ACCURACY, "", limit, f"the {which} is {reasons.get(ACCURACY, 'not verified')}")
    if before.measure != after.measure:
        return not_measured(ACCURACY, "", limit, f"{before.measure} of the baseline, {after.measure} of the candidate")
    lost = after.loss - before.loss
    verdict = REGRESSED if lost > limit else PASSED
    return Gate(ACCURACY, verdict, before.measure, before.value, after.value, lost, limit)
