"""A plan's jobs run to one document, which is written after every job; and the documents of shards, joined to one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from mlpdeploy.errors import InputError
from mlpdeploy.evidence.documents import matrix
from mlpdeploy.evidence.documents.matrix import CANCELLED, FAILED, PENDING, Matrix, Row
from mlpdeploy.matrix.executor import Executor, Order, Running
from mlpdeploy.matrix.found import stands
from mlpdeploy.matrix.job import Job
from mlpdeploy.matrix.plan import Plan
from mlpdeploy.matrix.run_job import cancelled, machine_here
from mlpdeploy.system import results

BETTER = (*matrix.DONE, FAILED, CANCELLED, PENDING)
"""Of two rows of one job the one is kept whose state comes first."""


class Watcher(Protocol):
    """Who is shown how jobs get on."""

    def kept(self, rows: Sequence[Row]) -> None:
        """These are done already."""

    def begun(self, running: Running) -> None:
        """A job has begun a command."""

    def waits(self, row: Row) -> None:
        """A job has done what it can do beside others, and waits."""

    def ended(self, row: Row) -> None:
        """A job has ended."""

    def say(self, line: str) -> None:
        """One line for the user."""


@dataclass(frozen=True)
class Part:
    """What of a plan is run: these jobs, which may be a shard, and where the document goes."""

    plan: Plan
    jobs: tuple[Job, ...]
    saved: Path
    shard: tuple[int, int] | None = None

    def document(self, rows: Mapping[str, Row]) -> Matrix:
        """How its jobs stand."""
        shard = None if self.shard is None else dict(zip(("index", "count"), self.shard, strict=True))
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return Matrix(now, self.plan.named(), shard, machine_here(), tuple(rows[job.name] for job in self.jobs))


def run(part: Part, executor: Executor, order: Order, watcher: Watcher, *, resume: bool = False) -> Matrix:
    """Run the jobs of a plan and write the document after each; with `resume` those that it has as done are kept.

    A job that fails is a row. Where the run is interrupted, jobs that were under way are `cancelled` in the document.
    Raises InputError where the document cannot be written, or the one to resume from cannot be read.
    """
    results.require_room(part.saved)
    kept = _kept(part) if resume else {}
    rows = {job.name: kept.get(job.name, job.row()) for job in part.jobs}
    todo = [job for job in part.jobs if job.name not in kept]
    watcher.kept(list(kept.values()))
    write(part, rows)
    begun = set[str]()
    try:
        with closing(executor.run(todo, order)) as events:
            for event in events:
                if isinstance(event, Running):
                    begun.add(event.job)
                    watcher.begun(event)
                    continue
                rows[event.job] = event
                watcher.waits(event) if event.state == PENDING else watcher.ended(event)
                _keep(part, rows, watcher.say)
    except BaseException:
        for name in begun:
            if rows[name].state == PENDING:
                rows[name] = cancelled(rows[name])
        _keep(part, rows, watcher.say)
        raise
    return part.document(rows)


def join(part: Part, documents: Sequence[Path]) -> Matrix:
    """The rows of several documents of one plan as one; a job that is in none of them is pending.

    Raises InputError where one cannot be read, or is of another plan.
    """
    rows = {job.name: job.row() for job in part.jobs}
    for path in documents:
        found = matrix.read(path)
        if found.plan["sha256"] != part.plan.sha256:
            raise InputError(f"{path}: is a result of another plan than {part.plan.path} as it is now")
        for row in found.rows:
            if row.job not in rows:
                raise InputError(f"{path}: has a job {row.job!r}, which {part.plan.path} has not")
            rows[row.job] = min(row, rows[row.job], key=lambda one: BETTER.index(one.state))
    return part.document(rows)


def write(part: Part, rows: Mapping[str, Row]) -> None:
    """Write the document. Raises InputError where that fails."""
    results.write(part.saved, text(part.document(rows)))


def text(document: Matrix) -> str:
    """A document as the text of a file."""
    return json.dumps(document.to_json(), indent=2, allow_nan=False) + "\n"


def _keep(part: Part, rows: Mapping[str, Row], say: Callable[[str], None]) -> None:
    """Write the document; where it cannot be written, say so and go on."""
    try:
        write(part, rows)
    except InputError as error:
        say(f"warning: {error}")


def _kept(part: Part) -> dict[str, Row]:
    """The rows of the document that need not be done again: of jobs as they are now, whose artifacts are there."""
    if not part.saved.exists():
        return {}
    found = {row.job: row for row in matrix.read(part.saved).rows if row.done}
    return {job.name: found[job.name] for job in part.jobs if job.name in found and _stands(found[job.name], job)}


def _stands(row: Row, job: Job) -> bool:
    """Whether a row is of this job as the plan has it, and its artifact still lies where it says."""
    asked: list[tuple[str, Any]] = [(step.name, dict(step.asked)) for step in row.steps]
    now = job.row()
    if row.selection != now.selection or asked != [(step.name, dict(step.asked)) for step in now.steps]:
        return False
    return stands(row)
