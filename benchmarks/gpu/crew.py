"""Processes that work at once, on all cores of a machine, and are timed one at a time, alone on its GPU.

Each runs a generator of rows, in a process group of its own. Whoever is to be timed alone says so (`alone`), and is
waited for: all others stand still meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

Row = dict[str, Any]
Work = Callable[..., Iterator[Row]]
"""A function of a module: from what is known of its row ({} at first) and what is given, the row each time that it
grows.
"""
Message = tuple[str, Any]
SHORT, KEPT = 20.0, 16
"""Tasks of at most so many seconds have one of so many places for themselves: what is slow takes not all time."""
TURN = 120.0
"""Seconds for which one process may have the GPU for itself."""
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl."""

ONE_CORE = ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
"""Variables of the environment by which each process has one core; what a user would start has them all."""

_asks: Connection | None = None
"""In a member of a crew, where it asks for its turns."""


@dataclass(frozen=True)
class Task:
    """What makes a row."""

    part: str
    name: str
    seconds: float
    """It does not begin with less time left."""
    work: Work
    given: tuple[Any, ...]
    enough: int | None = None
    """Of a row that says how much was `tried`: with so much, it has all that this task is to make."""


class Member(Protocol):
    """A process that works on a task."""

    task: Task

    def receive(self, seconds: float | None = None) -> Message:
        """What it says next. Raises TimeoutError, or EOFError where it has ended."""

    def go(self) -> None:
        """It has the GPU for itself."""

    def stand(self, still: bool) -> None:
        """Stop it and what it has started, or let them go on."""

    def end(self, patience: float = 0.0) -> str:
        """End it and what it has started; how it ended by itself, where it did in that many seconds."""


class Hands(Protocol):
    """Where members come from."""

    def hire(self, task: Task, known: Row) -> Member:
        """One that begins at once."""

    def wait(self, members: Sequence[Member], seconds: float) -> Sequence[Member]:
        """Those that say something: as soon as any does, or none in that time."""


class Crew:
    """As many members as there are `places`, which take the first task for which there is time; see KEPT."""

    def __init__(
        self,
        tasks: Sequence[Task],
        places: int,
        left: Callable[[], float],
        known: Callable[[Task], Row | None],
        hands: Hands | None = None,
    ) -> None:
        """`left`: seconds of the time for all. `known`: what is known of a task's row, None where it is complete."""
        self._queue, self.members = [*tasks], list[Member]()
        self._places, self._left, self._known, self._hands = places, left, known, hands or Processes(tasks)

    def rows(self) -> Iterator[tuple[Task, Row]]:
        """Each row when it grows: {"failed": why} where what raised or died made none. Ends with the time at last."""
        try:
            while self._fill() and (ready := self._hands.wait(self.members, max(0.0, self._left()))):
                for member in ready:
                    yield from self._heard(member)
                if self._left() <= 0:
                    break
        finally:
            for member in self.members:
                member.end()

    def left_out(self) -> list[str]:
        """What there was no time for, begun or not."""
        waiting = [*(member.task for member in self.members), *self._queue]
        return [*dict.fromkeys(task.name for task in waiting if self._known(task) is not None)]

    def _fill(self) -> bool:
        """Hire for all places; whether anybody works."""
        while len(self.members) < self._places and (task := next(filter(self._can_begin, self._queue), None)):
            self._queue.remove(task)
            if (known := self._known(task)) is not None:
                self.members.append(self._hands.hire(task, known))
        return bool(self.members)

    def _can_begin(self, task: Task) -> bool:
        if task.seconds > self._left() or any(task.name == member.task.name for member in self.members):
            return False
        long = sum(member.task.seconds > SHORT for member in self.members)
        return task.seconds <= SHORT or long < self._places - self._places // KEPT or not self._short_wait()

    def _short_wait(self) -> bool:
        waiting = (task for task in self._queue if task.seconds <= min(SHORT, self._left()))
        return any(self._known(task) is not None for task in waiting)

    def _heard(self, member: Member) -> Iterator[tuple[Task, Row]]:
        try:
            kind, told = member.receive()
            if kind == "turn":
                self._give_turn(member)
            elif kind == "row":
                yield member.task, told
            elif kind == "failed":
                yield member.task, {"failed": told}
        except TimeoutError as error:
            if self._left() <= 0:  # which is no failure of its own
                return
            kind = "failed"
            yield member.task, {"failed": str(error)}
        except EOFError:
            kind = "ended"
            yield member.task, {"failed": self._ended(member, 10)}  # its pipe closes before its exit code is there
        if kind in ("done", "failed"):
            self._ended(member)

    def _give_turn(self, member: Member) -> None:
        """Let it work alone until it is done with it. Raises TimeoutError, EOFError."""
        others = [one for one in self.members if one is not member]
        for other in others:
            other.stand(still=True)
        try:
            member.go()
            member.receive(max(0.0, min(TURN, self._left())))
        finally:
            for other in others:
                other.stand(still=False)

    def _ended(self, member: Member, patience: float = 0.0) -> str:
        self.members.remove(member)
        return member.end(patience)


@contextmanager
def alone() -> Iterator[None]:
    """What is inside has the GPU for itself among the members of a crew; anywhere else it just runs."""
    if _asks is None:
        yield
        return
    _asks.send(("turn", None))
    _asks.recv()
    try:
        yield
    finally:
        _asks.send(("over", None))


def once(known: Row, measure: Callable[..., Row], *given: Any) -> Iterator[Row]:
    """A row that is complete when it is there."""
    yield measure(*given)


class Processes:
    """Members that are processes: of a server which has imported what they need, and has no CUDA context."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["benchmarks.gpu.tied", *sorted({task.work.__module__ for task in tasks})])

    def hire(self, task: Task, known: Row) -> Member:
        """See Hands."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, task.work, known, task.given))
        process.start()
        theirs.close()
        return _Process(task, process, ours)

    def wait(self, members: Sequence[Member], seconds: float) -> Sequence[Member]:
        """See Hands."""
        pipes: Mapping[Any, Member] = {member.pipe: member for member in members if isinstance(member, _Process)}
        return [pipes[pipe] for pipe in wait(list(pipes), seconds)]


@dataclass
class _Process:
    task: Task
    process: BaseProcess
    pipe: Connection

    def receive(self, seconds: float | None = None) -> Message:
        if seconds is not None and not self.pipe.poll(seconds):
            raise TimeoutError(f"it had the GPU for itself for more than {seconds:.0f} s")
        try:
            kind, told = self.pipe.recv()
        except ConnectionResetError:
            raise EOFError from None
        return kind, told

    def go(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended, which is heard next
            self.pipe.send("go")

    def stand(self, still: bool) -> None:
        self._signal(signal.SIGSTOP if still else signal.SIGCONT)

    def end(self, patience: float = 0.0) -> str:
        self.process.join(patience)
        code = self.process.exitcode
        self._signal(signal.SIGKILL)  # and nobody waits for it: a process on a GPU takes its time
        return f"its process ended with {ending(code)}"

    def _signal(self, number: int) -> None:
        assert self.process.pid
        for send in (os.killpg, os.kill):  # one that has just begun has no group yet
            with contextlib.suppress(ProcessLookupError):
                return send(self.process.pid, number)


def ending(code: int | None) -> str:
    """An exit code, or the name of the signal that it stands for."""
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def end_with_parent() -> None:
    """This process is killed where its parent ends, also while it stands still; on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _work(pipe: Connection, work: Work, known: Row, given: tuple[Any, ...]) -> None:
    """One member, from its first row to its last."""
    global _asks
    os.setpgid(0, 0)
    end_with_parent()
    _asks = pipe
    try:
        for row in work(known, *given):
            pipe.send(("row", row))
        pipe.send(("done", None))
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:  # whatever a compiler raises is that row's failure
        traceback.print_exc()
        pipe.send(("failed", f"{type(error).__name__}: {error}"))
