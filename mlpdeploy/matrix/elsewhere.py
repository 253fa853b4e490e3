"""A job on a machine that has nothing but mlpdeploy: what it is sent, what it does, and what comes back.

    take its artifact from the depot -> run_job -> put the artifact there -> row and log

It knows nothing of who sends it: `on_ray` does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from mlpdeploy.artifact import cache, lookup, store
from mlpdeploy.artifact.archive import pack, unpack
from mlpdeploy.artifact.depot import Depot
from mlpdeploy.errors import ArtifactError, MachineLacks, MlpdeployError
from mlpdeploy.evidence.documents.matrix import CANCELLED, FAILED, PENDING, SKIPPED, Row
from mlpdeploy.matrix.executor import Running
from mlpdeploy.matrix.here import THREADS, backend_here, beside_others
from mlpdeploy.matrix.job import Job
from mlpdeploy.matrix.run_job import COMMAND, Manner, run_job, worker
from mlpdeploy.system import tied
from mlpdeploy.system.files import sha256
from mlpdeploy.system.leftovers import workplace
from mlpdeploy.system.processes import Children

LOOK = 0.2
"""Seconds between two looks at whether this process was asked to end."""
LONGEST_LOG = 4 << 20
"""Bytes of a log that come back, its end."""


@dataclass(frozen=True)
class Sent:
    """A job as it is sent: all of it that may run beside others, or, with the row `given`, the rest of it, alone.

    `below` is where among the artifacts it keeps its own. `folder`, `path` and `threads` are the current folder,
    PYTHONPATH and OMP_NUM_THREADS of who sends it, and `sources` the hash of their mlpdeploy.
    """

    job: Job
    below: str
    retries: int
    folder: str
    path: str | None
    threads: str | None
    sources: str
    given: Row | None = None


@dataclass(frozen=True)
class Came:
    """What comes back: the row, pending where the rest is to run alone, and the log of what ran."""

    row: Row
    log: bytes


def sent(job: Job, out: Path, retries: int, given: Row | None = None) -> Sent:
    """A job as this process sends it, its artifacts being all below `out`."""
    below = Path(os.path.relpath(job.selection.out, out)).as_posix()
    path, threads = (os.environ.get(name) for name in ("PYTHONPATH", THREADS))
    return Sent(job, below, retries, os.getcwd(), path, threads, cache.sources(), given)


def sources() -> str:
    """The hash of the mlpdeploy that is here."""
    return cache.sources()


def failed(row: Row, reason: str) -> Row:
    """A row whose job could not be gone on with, outside of any command."""
    steps = tuple(replace(step, outcome=SKIPPED) if step.outcome == PENDING else step for step in row.steps)
    return replace(row, steps=steps, state=FAILED, error=" ".join(reason.split()))


def work(asked: Sent, depot: Depot, tell: Callable[[Running], None]) -> Came:
    """Do what was sent, in a folder that goes away; where this thread is interrupted, all processes end before it goes.

    What goes wrong is in the row.
    """
    with suppress(OSError):  # where it is not there, what is relative to it is not found, and that is said
        os.chdir(asked.folder)
    with workplace() as folder, ThreadPoolExecutor(1, "mlpdeploy-job") as pool, Children() as children:
        log, row = folder / "log", replace(asked.given or asked.job.row(), worker=worker())
        # A thread does it, so that this one can be interrupted, and never waits for the depot: a cluster would take
        # that for a pause, and give the cores of this job to another one.
        done = pool.submit(_done, asked, depot, tell, folder, log, children)
        while not done.done():
            wait([done], LOOK)
        try:
            row = done.result()
        except MlpdeployError as error:
            row = failed(row, str(error))
        return Came(row, _end_of(log))


def _done(
    asked: Sent, depot: Depot, tell: Callable[[Running], None], folder: Path, log: Path, children: Children
) -> Row:
    if cache.sources() != asked.sources:
        raise MachineLacks(
            f"{worker()} has another mlpdeploy than the machine that runs the plan: install the same one"
        )
    selection = asked.job.selection
    job = replace(asked.job, selection=replace(selection, out=folder / "out" / asked.below))
    place, row = _place(job, folder), asked.given
    before = None if place is None else _taken(depot, place, folder, log)
    if row is not None:
        if before is None:
            raise ArtifactError(f"the artifact of {job.name} is not in the store any more: run it again")
        row = replace(row, folder=str(folder / "out" / str(place)))
    row = _run(job, asked, tell, log, row, children)
    if row.folder is None:
        return row
    artifact = store.open_artifact(Path(row.folder))
    place = artifact.folder.relative_to(folder / "out").as_posix()
    try:
        if sha256(pack(artifact, folder / "packed")) != before:
            depot.put(folder / "packed", place)
    except MlpdeployError as error:
        return failed(replace(row, folder=None), str(error))
    return replace(row, folder=depot.where(place))


def _place(job: Job, folder: Path) -> str | None:
    """Where among all artifacts the job's lies; None where none can be built here, which its command will say."""
    backend = backend_here(job)
    if backend is None:
        return None
    found = lookup.folder_of(job.selection.with_backend(backend.name), backend)
    return found.relative_to(folder / "out").as_posix()


def _taken(depot: Depot, place: str, folder: Path, log: Path) -> str | None:
    """Put the artifact that the depot has where the job will look for it: the hash of its archive; None without one."""
    packed = folder / "packed"
    if not depot.take(place, packed):
        return None
    try:
        unpack(packed, folder / "out" / place)
    except ArtifactError as error:
        log.write_text(f"building again what lies at {depot.where(place)}: {error}\n", encoding="utf-8")
        return None
    return sha256(packed)


def _run(
    job: Job, asked: Sent, tell: Callable[[Running], None], log: Path, given: Row | None, children: Children
) -> Row:
    manner = Manner(
        asked.retries,
        _environment(job, asked),
        children,
        lambda step, attempt: tell(Running(job.name, step, worker(), attempt)),
        _tied(COMMAND),
    )
    names = None if given is not None else beside_others(job)
    row = run_job(job, log, manner, names=names, given=given)
    return failed(row, row.error or "ended from outside") if row.state == CANCELLED else row


def _environment(job: Job, asked: Sent) -> Mapping[str, str]:
    """The environment of a job's commands: this machine's, and where the code of who sends it lies.

    A cluster says how many threads belong to a job, where who sends it does not. What measures has all; and an engine
    that PyTorch itself compiles depends on their number, so there it is what it is without a cluster.
    """
    found = dict(os.environ)
    if asked.path is not None:
        found["PYTHONPATH"] = asked.path
    backend = backend_here(job)
    if asked.threads is not None:
        found[THREADS] = asked.threads
    elif asked.given is not None or (backend is not None and not backend.reads_file):
        found.pop(THREADS, None)
    return found


def _tied(command: Sequence[str]) -> tuple[str, ...]:
    """The command, ended where this process ends without having been able to."""
    if os.name != "posix":
        return tuple(command)
    return (sys.executable, "-I", "-S", tied.__file__, str(os.getpid()), *command)


def _end_of(log: Path) -> bytes:
    if not log.exists():
        return b""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LONGEST_LOG))
        return file.read()
