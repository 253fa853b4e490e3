"""Where jobs run: what an executor is. A new one is one file that calls `run_job` somewhere else."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mlpdeploy.evidence.documents.matrix import Row
from mlpdeploy.matrix.job import Job


@dataclass(frozen=True)
class Running:
    """A job that has begun a step, on the worker of that name."""

    job: str
    step: str
    worker: str
    attempt: int = 1


@dataclass(frozen=True)
class Order:
    """What is asked of an executor beside the jobs: how often a job is tried again that was killed, where logs lie."""

    retries: int = 0
    logs: Path = Path()


class Executor(Protocol):
    """Runs jobs somewhere."""

    def run(self, jobs: Sequence[Job], order: Order) -> Generator[Running | Row, None, None]:
        """Each job's steps as they begin, and its row once it has ended; in any order.

        A row that is still pending tells how far a job is that waits, and another one of it follows. A job that fails
        is a row. Where the generator is closed, or an exception is raised in it (the keyboard, a
        signal), every process that it started ends before it does.
        """
