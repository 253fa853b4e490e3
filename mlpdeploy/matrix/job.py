"""One job of a plan: a selection, the commands to run on it, and what it needs of a machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlpdeploy.artifact import lookup
from mlpdeploy.engine.backend import pick
from mlpdeploy.evidence.documents.matrix import ANYWHERE, Needs, Row, Step
from mlpdeploy.selection import Selection

BUILD, VERIFY, EVALUATE, BENCH, REGRESS = "build", "verify", "evaluate", "bench", "regress"
ORDER = (BUILD, VERIFY, EVALUATE, BENCH, REGRESS)
"""The commands of a job as they follow each other: what measures time comes last."""
TIMED = (BENCH, REGRESS)


@dataclass(frozen=True)
class Asked:
    """One command that is asked for, with its own options as a plan has them (`words` in `options` spells them)."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One job, by a readable name that no other job of its plan has; it knows nothing of where it runs.

    `selection.out` is the store of its artifact, which is the job's alone within its plan.
    """

    name: str
    selection: Selection
    steps: tuple[Asked, ...]
    needs: Needs = ANYWHERE

    def row(self) -> Row:
        """The row of a job that is not begun."""
        steps = tuple(Step(step.name, dict(step.options)) for step in self.steps)
        return Row(self.name, self.selection.to_json(), self.needs, steps=steps)

    def key(self) -> str | None:
        """The key of its artifact on this machine; None of a network that has to be traced first.

        Raises MachineLacks and InputError as `engine.backend.pick` does.
        """
        selection = self.selection
        backend = pick(selection.backend, selection.precision, selection.gpus)
        return lookup.key_of(selection.with_backend(backend.name), backend)
