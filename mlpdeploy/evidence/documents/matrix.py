"""The document of `mlpdeploy matrix`: one row for each job of a plan, done or not, and what is known of its engine.

Matrix   which plan, which shard of it, where and when; its rows in the order of the plan
Row      one job: what was asked for, how it ended, which files came of it
Step     one command of a job (build, verify, evaluate, bench, regress), and the essentials of its own document
Facts    what of a row compares with another one; None where it is not known
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlpdeploy.artifact import schema
from mlpdeploy.errors import InputError
from mlpdeploy.system import documents
from mlpdeploy.system.documents import Kind

KIND, SCHEMA = "matrix", 1

BUILT, CACHED, FAILED, CANCELLED, PENDING = "built", "cached", "failed", "cancelled", "pending"
STATES = (BUILT, CACHED, FAILED, CANCELLED, PENDING)
"""How a job stands: built anew, found built, failed at some step, ended with the run, or not begun."""
DONE = (BUILT, CACHED)

PASSED, SKIPPED = "passed", "skipped"
OUTCOMES = (PASSED, FAILED, CACHED, SKIPPED, CANCELLED, PENDING)
"""How a step stands; `skipped` where one before it failed, `cached` where what it makes was there."""


@dataclass(frozen=True)
class Needs:
    """What a job needs of a machine: cores, bytes of memory, a type of GPU ("any", or as a cluster names it)."""

    cpus: int | None = None
    memory: int | None = None
    gpu: str | None = None


ANYWHERE, ANY_GPU = Needs(), "any"


@dataclass(frozen=True)
class Step:
    """One command of a job. `asked` are its own options, `exit_code` is negative where a signal ended it.

    `found` has the essentials of the document that the command printed.
    """

    name: str
    asked: Mapping[str, Any] = field(default_factory=dict)
    outcome: str = PENDING
    exit_code: int | None = None
    seconds: float = 0.0
    error: str | None = None
    found: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """What is known of an engine.

    `launches` are those that a TensorRT engine makes, `layers` those that TensorRT's parser counts. `latency_ms` is the
    engine's median by batch size, of bench. `of_budget` is the largest error that verify found over what was allowed:
    above 1 it failed. `top1` is the engine's share of right answers, of evaluate.
    """

    engine_bytes: int | None = None
    launches: int | None = None
    layers: int | None = None
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    of_budget: float | None = None
    top1: float | None = None


UNKNOWN = Facts()


@dataclass(frozen=True)
class Row:
    """One job of the plan, by a name that is its own there.

    `selection` is what `Selection.to_json` gives. `key` is the artifact's, `files` its files' hashes as in the
    manifest. `seconds` and `attempts` are of the run that did it. `worker` is the host and process that did, and
    `machine` its fingerprint; `log` is where stderr of the commands is.
    """

    job: str
    selection: Mapping[str, Any]
    needs: Needs = ANYWHERE
    state: str = PENDING
    key: str | None = None
    folder: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    attempts: int = 0
    worker: str | None = None
    machine: Mapping[str, Any] | None = None
    error: str | None = None
    log: str | None = None
    steps: tuple[Step, ...] = ()
    facts: Facts = UNKNOWN

    @property
    def done(self) -> bool:
        """Whether nothing of it is left to do."""
        return self.state in DONE

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON values."""
        return {**asdict(self), "steps": [asdict(step) for step in self.steps]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Row:
        """What `to_json` gave."""
        parts = {"needs": Needs(**values["needs"]), "facts": Facts(**values["facts"])}
        return cls(**{**values, **parts, "steps": tuple(Step(**step) for step in values["steps"])})


@dataclass(frozen=True)
class Matrix:
    """The jobs of a plan, or of one shard of it, and how they ended.

    `plan` has the file's path and sha256, `shard` its index (from 1) and count, None where it is all. `machine` is the
    fingerprint of where the command ran; rows say where their jobs did.
    """

    created: str
    plan: Mapping[str, str]
    shard: Mapping[str, int] | None
    machine: Mapping[str, Any]
    rows: tuple[Row, ...]

    def __repr__(self) -> str:
        counted = ", ".join(f"{count} {state}" for state, count in self.counts().items() if count)
        return f"<Matrix of {self.plan['path']}: {counted or 'no job'}>"

    def counts(self) -> dict[str, int]:
        """How many jobs stand how."""
        states = [row.state for row in self.rows]
        return {state: states.count(state) for state in STATES}

    @property
    def passed(self) -> bool:
        """Whether every job is done: the command then exits with 0."""
        return all(row.done for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """The whole document as JSON values, its kind and schema first."""
        return {
            "kind": KIND,
            "schema": SCHEMA,
            "created": self.created,
            "plan": dict(self.plan),
            "shard": None if self.shard is None else dict(self.shard),
            "machine": dict(self.machine),
            "passed": self.passed,
            "counts": self.counts(),
            "rows": [row.to_json() for row in self.rows],
        }


_NEEDS: Kind = {"cpus": (schema.SIZE, None), "memory": (schema.SIZE, None), "gpu": (str, None)}
_STEP: Kind = {
    "name": str, "asked": {str: object}, "outcome": str, "exit_code": (schema.WHOLE, None), "seconds": schema.AMOUNT,
    "error": (str, None), "found": {str: object},
}  # fmt: skip
_FACTS: Kind = {
    "engine_bytes": (schema.COUNT, None), "launches": (schema.COUNT, None), "layers": (schema.COUNT, None),
    "latency_ms": {str: schema.POSITIVE}, "of_budget": (schema.AMOUNT, None), "top1": (schema.AMOUNT, None),
}  # fmt: skip
_MACHINE: Kind = {"cpu": str, "cores": schema.SIZE, "versions": {str: str}, "gpu": ({str: object}, None)}
_ROW: Kind = {
    "job": str, "selection": schema.SELECTION, "needs": _NEEDS, "state": str, "key": (str, None),
    "folder": (str, None), "files": {str: str}, "seconds": schema.AMOUNT, "attempts": schema.COUNT,
    "worker": (str, None), "machine": (_MACHINE, None), "error": (str, None), "log": (str, None), "steps": [_STEP],
    "facts": _FACTS,
}  # fmt: skip
_MATRIX: Kind = {
    "created": str, "plan": {"path": str, "sha256": str},
    "shard": ({"index": schema.SIZE, "count": schema.SIZE}, None), "machine": _MACHINE, "rows": [_ROW],
}  # fmt: skip
_FIELDS = tuple(name for name in _MATRIX if name != "rows")


def read(path: Path) -> Matrix:
    """A saved document. Raises InputError, one line, where it is missing or cannot be used."""
    document = documents.saved(path, [KIND], SCHEMA, "`mlpdeploy matrix`", "run it again")
    if (problem := documents.wrong(document, _MATRIX) or _unlike(document)) is not None:
        raise InputError(f"{path}: is damaged or of another version ({problem}): run it again")
    rows = tuple(Row.from_json({name: row[name] for name in _ROW}) for row in map(_known, document["rows"]))
    return Matrix(**{name: document[name] for name in _FIELDS}, rows=rows)


def _unlike(document: Mapping[str, Any]) -> str | None:
    """What of a document, whose values are of the right types, no run of ours writes; None where nothing is."""
    names = set()
    for place, row in enumerate(document["rows"]):
        if row["job"] in names:
            return f"rows[{place}].job {row['job']!r} stands there twice"
        names.add(row["job"])
        if row["state"] not in STATES:
            return f"rows[{place}].state is none of {', '.join(STATES)}"
        if any(step["outcome"] not in OUTCOMES for step in row["steps"]):
            return f"rows[{place}] has a step whose outcome is none of {', '.join(OUTCOMES)}"
    return None


def _known(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row without what another version may have put into its parts."""
    parts = {name: {key: row[name][key] for key in kind} for name, kind in (("needs", _NEEDS), ("facts", _FACTS))}
    return {**row, **parts, "steps": [{key: step[key] for key in _STEP} for step in row["steps"]]}
