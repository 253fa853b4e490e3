"""The executor of this machine: threads that each wait for the processes of one job.

What measures time runs behind all else and alone, since beside other jobs its numbers would be theirs as well: `bench`
and `regress`; builds that time what they build; and all that is made for this machine's GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

from mlpdeploy.engine.backend import Backend, pick
from mlpdeploy.engine.host import cores
from mlpdeploy.errors import MlpdeployError
from mlpdeploy.evidence.documents.matrix import PENDING, Row
from mlpdeploy.matrix.executor import Order, Running
from mlpdeploy.matrix.job import BUILD, TIMED, Asked, Job
from mlpdeploy.matrix.naming import slug
from mlpdeploy.matrix.run_job import Manner, run_job, worker
from mlpdeploy.system.processes import Children

THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Here:
    """So many jobs at once, each with its part of the cores."""

    at_once: int = 1

    def run(self, jobs: Sequence[Job], order: Order) -> Generator[Running | Row, None, None]:
        """See Executor.run."""
        together, alone = [job for job in jobs if beside_others(job)], [job for job in jobs if not beside_others(job)]
        begun: dict[str, Row] = {}
        with _pool(self.at_once) as pool, Children() as children:
            room = _Room(pool, order, children, SimpleQueue())
            for event in room.run(together, {}, self._environment):
                if isinstance(event, Row) and event.state == PENDING:
                    begun[event.job] = event
                yield event
            for job in [*(one for one in together if one.name in begun), *alone]:
                yield from room.run([job], begun, lambda job: None, whole=True)

    def _environment(self, job: Job) -> dict[str, str] | None:
        """What a job is told of the cores that are its own; None where that is nothing.

        An engine that PyTorch itself compiles depends on its threads, so there they are what they are without us.
        """
        backend = backend_here(job)
        if self.at_once == 1 or THREADS in os.environ or backend is None or not backend.reads_file:
            return None
        return {**os.environ, THREADS: str(job.needs.cpus or max(1, cores() // self.at_once))}


def beside_others(job: Job) -> tuple[str, ...]:
    """The first commands of a job, by name, up to one that measures time."""
    measuring = (place for place, asked in enumerate(job.steps) if _measures(job, asked))
    return tuple(asked.name for asked in job.steps[: next(measuring, len(job.steps))])


def _measures(job: Job, asked: Asked) -> bool:
    if asked.name in TIMED:
        return True
    if asked.name == BUILD and (asked.options.keys() & {"search", "tactics"} or asked.options.get("worth")):
        return True
    backend = backend_here(job)
    return backend is not None and backend.gpu(job.selection.gpus) is not None


def backend_here(job: Job) -> Backend | None:
    """The backend that builds a job here; None where none does, which its own command will say."""
    try:
        return pick(job.selection.backend, job.selection.precision, job.selection.gpus)
    except MlpdeployError:
        return None


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(threads, "mlpdeploy-job")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Room:
    """The threads, the processes that they wait for, and what they tell."""

    pool: ThreadPoolExecutor
    order: Order
    children: Children
    events: SimpleQueue[Running | Future[Row]]

    def run(
        self,
        jobs: Sequence[Job],
        begun: Mapping[str, Row],
        environment: Callable[[Job], Mapping[str, str] | None],
        whole: bool = False,
    ) -> Iterator[Running | Row]:
        """What jobs tell, and their rows, of the commands that may run beside others, or of the `whole` rest."""
        for job in jobs:
            manner = Manner(self.order.retries, environment(job), self.children, self._teller(job))
            names = None if whole else beside_others(job)
            log = self.order.logs / f"{slug(job.name)}.log"
            future = self.pool.submit(run_job, job, log, manner, names=names, given=begun.get(job.name))
            future.add_done_callback(self.events.put)
        left = len(jobs)
        while left:
            event = self.events.get()
            if isinstance(event, Running):
                yield event
            else:
                left -= 1
                yield event.result()

    def _teller(self, job: Job) -> Callable[[str, int], None]:
        return lambda step, attempt: self.events.put(Running(job.name, step, worker(), attempt))
