"""The executor of a Ray cluster: one task a job, wherever Ray has what the job needs; Ray does all of the scheduling.

    desk     an actor beside this process: what jobs tell, and the folder that artifacts come to, where it is one
    task     `elsewhere.work`: at first all that may run beside others, then the rest with all cores of the same machine

A worker that dies is Ray's to replace, as often as `--retries` says; what goes wrong in a job is its row.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from mlpdeploy.artifact.depot import Depot, Folder
from mlpdeploy.errors import MachineLacks
from mlpdeploy.evidence.documents.matrix import ANY_GPU, PENDING, Needs, Row
from mlpdeploy.matrix import ray_session
from mlpdeploy.matrix.elsewhere import Came, Sent, failed, sent, sources, work
from mlpdeploy.matrix.executor import Order, Running
from mlpdeploy.matrix.job import Job
from mlpdeploy.matrix.naming import slug
from mlpdeploy.system.leftovers import temporary_folder
from mlpdeploy.system.processes import GRACE

LOOK = 0.2
"""Seconds between two looks at what jobs tell."""
CALLS = 8
"""Calls that the desk answers at once."""


@dataclass(frozen=True)
class OnRay:
    """Jobs on the cluster at `address`, or on one of this machine alone, that begins and ends with the run.

    The latter has so many `cpus`, all cores where that is not said. Artifacts lie below `out`, as the plan says, and
    come to the same place below the depot.
    """

    depot: Depot
    out: Path
    address: str | None = None
    cpus: int | None = None

    def run(self, jobs: Sequence[Job], order: Order) -> Generator[Running | Row, None, None]:
        """See Executor.run. Raises MachineLacks where there is no Ray, or no such cluster."""
        with ray_session.connected(self.address, self.cpus) as session:
            cluster = _Cluster(session.ray, self, order)
            session.check()
            try:
                for job in jobs:
                    if (lack := cluster.begin(job)) is not None:
                        yield lack
                while cluster.waiting:
                    session.check()
                    yield from cluster.events()
                yield from cluster.told()
            finally:
                cluster.end()


class Desk:
    """What stays beside the process that runs the plan: workers call it, from wherever they are."""

    def __init__(self, depot: Depot) -> None:
        self.depot, self.running = depot, SimpleQueue[Running]()

    def tell(self, running: Running) -> None:
        """A job has begun a command."""
        self.running.put(running)

    def told(self) -> list[Running]:
        """What was told since the last call."""
        found = []
        while True:
            try:
                found.append(self.running.get_nowait())
            except Empty:
                return found

    def take(self, place: str) -> bytes | None:
        """The artifact at a place, as one file's content."""
        with temporary_folder() as folder:
            return (folder / "packed").read_bytes() if self.depot.take(place, folder / "packed") else None

    def put(self, content: bytes, place: str) -> None:
        """Put an artifact at a place."""
        with temporary_folder() as folder:
            (folder / "packed").write_bytes(content)
            self.depot.put(folder / "packed", place)


@dataclass(frozen=True)
class AtDesk:
    """The depot of another machine's folder, which its desk holds."""

    desk: Any
    depot: Depot

    def where(self, place: str) -> str:
        """See Depot.where."""
        return self.depot.where(place)

    def take(self, place: str, path: Path) -> bool:
        """See Depot.take."""
        content = _got(self.desk.take.remote(place))
        if content is not None:
            path.write_bytes(content)
        return content is not None

    def put(self, path: Path, place: str) -> None:
        """See Depot.put."""
        _got(self.desk.put.remote(path.read_bytes(), place))


def _got(answer: Any) -> Any:
    """What the desk answers; an error of ours is raised as itself."""
    import ray

    try:
        return ray.get(answer)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


def _task(asked: Sent, depot: Depot, desk: Any) -> tuple[Came, str]:
    """One job on a worker: what comes of it, and on which node."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    return work(asked, depot, lambda running: desk.tell.remote(running)), node


@dataclass
class _Cluster:
    """The tasks of one run."""

    ray: Any
    asked: OnRay
    order: Order
    waiting: dict[Any, tuple[Job, Row]] = field(default_factory=dict)
    workers: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        here = self._on(self.ray.get_runtime_context().get_node_id())
        self._require_same(here)
        desk = self.ray.remote(Desk).options(
            num_cpus=0, max_concurrency=CALLS, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here
        )
        depot = self.asked.depot
        if isinstance(depot, Folder):
            depot = Folder(depot.root.absolute())
        self.desk = desk.remote(depot)
        self.depot = AtDesk(self.desk, self.asked.depot) if isinstance(depot, Folder) else depot
        self.known = self._nodes()

    def _require_same(self, here: Any) -> None:
        """Raise MachineLacks where Ray was begun with another mlpdeploy than this one; each job looks where it runs."""
        found = self.ray.remote(sources).options(num_cpus=0, max_retries=0, scheduling_strategy=here).remote()
        try:
            same = self.ray.get(found) == sources()
        except self.ray.exceptions.RayError:  # there is none at all
            same = False
        if not same:
            raise MachineLacks(
                "--on ray: the cluster has another mlpdeploy than this one, or none: install the same on each of its "
                "machines, and begin Ray anew"
            )

    def begin(self, job: Job) -> Row | None:
        """Send a job; its row where no node that is there has what it needs."""
        if not any(_has(node, job.needs) for node in self.known.values()):
            return failed(job.row(), f"no node of the cluster has {_said(job.needs)}")
        self._send(job, None, **_resources(job.needs))
        return None

    def events(self) -> Iterator[Running | Row]:
        """Wait a little: what was told meanwhile, and the rows of jobs that ended."""
        done, _ = self.ray.wait([*self.waiting], timeout=LOOK)
        yield from self.told()
        for one in done:
            job, before = self.waiting.pop(one)
            try:
                came, node = self.ray.get(one)
            except self.ray.exceptions.RayError as error:
                yield failed(before, _reason(error))
                continue
            row = self._kept(job, came)
            if row.state == PENDING:
                alone = _resources(job.needs) | {"num_cpus": self._nodes().get(node, {}).get("CPU", 1)}
                self._send(job, row, **alone, scheduling_strategy=self._on(node))
            yield row

    def told(self) -> list[Running]:
        """What jobs told since the last time."""
        found: list[Running] = self.ray.get(self.desk.told.remote())
        for one in found:
            self.workers[one.job].add(one.worker)
        return found

    def end(self) -> None:
        """End all that runs, on the workers too: at first as Ctrl-C would, then by the end of the worker's process."""
        left = [*self.waiting]
        for force in (False, True):
            for one in left:
                self.ray.cancel(one, force=force)
            if left:
                _, left = self.ray.wait(left, num_returns=len(left), timeout=2 * GRACE)

    def _send(self, job: Job, given: Row | None, **options: Any) -> None:
        asked = sent(job, self.asked.out, self.order.retries, given)
        self.workers[job.name] = set()
        task = self.ray.remote(_task).options(max_retries=self.order.retries, name=job.name, **options)
        self.waiting[task.remote(asked, self.depot, self.desk)] = job, given or job.row()

    def _kept(self, job: Job, came: Came) -> Row:
        """The row, with the log that is kept here; an attempt whose worker died counts too."""
        path = self.order.logs / f"{slug(job.name)}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(came.log)
        died = max(0, len(self.workers[job.name]) - 1)
        return replace(came.row, log=str(path), attempts=came.row.attempts + died)

    def _nodes(self) -> dict[str, dict[str, float]]:
        """What each node has that is there now."""
        return {one["NodeID"]: one["Resources"] for one in self.ray.nodes() if one["Alive"]}

    def _on(self, node: str) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node, soft=False)


def _resources(needs: Needs) -> dict[str, Any]:
    """What a job needs, in Ray's words."""
    gpu = {} if needs.gpu is None else {"num_gpus": 1}
    named = {} if needs.gpu in (None, ANY_GPU) else {"accelerator_type": needs.gpu}
    memory = {} if needs.memory is None else {"memory": needs.memory}
    return {"num_cpus": needs.cpus or 1, **memory, **gpu, **named}


def _has(node: Mapping[str, float], needs: Needs) -> bool:
    """Whether a node has what a job needs, when nothing else runs there."""
    wanted = _resources(needs)
    named = wanted.pop("accelerator_type", None)
    called = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    enough = all(node.get(called[name], 0) >= value for name, value in wanted.items())
    return enough and (named is None or f"accelerator_type:{named}" in node)


def _said(needs: Needs) -> str:
    words = [f"{needs.cpus or 1} CPU(s)"]
    words += [] if needs.memory is None else [f"{needs.memory} bytes of memory"]
    words += [] if needs.gpu is None else [f"a GPU ({needs.gpu})"]
    return " and ".join(words)


def _reason(error: Exception) -> str:
    """Why a task gave nothing, in one line."""
    cause = getattr(error, "cause", None)
    if cause is not None:
        return f"unexpected {type(cause).__name__} on its worker: {cause}"[:300]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"its worker was lost ({type(error).__name__}: {lines[0] if lines else 'no reason is known'})"[:300]
