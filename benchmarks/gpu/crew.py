"""Processes that prepare at once, on all cores of a machine, and are timed one at a time, alone on its GPU."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

Row = dict[str, Any]
Prepare = Callable[..., Callable[[], Row]]
"""Compiles, and gives what measures. It is called in another process, so both are functions of a module."""


@dataclass
class _Member:
    process: BaseProcess
    pipe: Connection


class Crew:
    """One process for each task, by name: a `Prepare` and its arguments. Processes end with the context."""

    def __init__(self, tasks: Mapping[str, tuple[Prepare, tuple[Any, ...]]]) -> None:
        self.tasks, self.members = tasks, dict[str, _Member]()

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("forkserver")  # which imports what they need once, and no CUDA context
        context.set_forkserver_preload(sorted({prepare.__module__ for prepare, _ in self.tasks.values()}))
        for name, (prepare, given) in self.tasks.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, prepare, given), daemon=True)
            with _alone():
                process.start()
            theirs.close()
            self.members[name] = _Member(process, ours)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for member in self.members.values():
            member.process.kill()
            member.process.join()

    def ready(self, patience: Callable[[], float]) -> Iterator[str]:
        """The name of each process that has prepared, or failed to, as soon as it has.

        `patience`: for how many seconds from now the next one may be waited for. Ends when none came in that time.
        """
        waiting: dict[Any, str] = {member.pipe: name for name, member in self.members.items()}
        while waiting and (ready := wait(list(waiting), max(0.0, patience()))):
            yield from [waiting.pop(pipe) for pipe in ready]

    def row(self, name: str) -> Row:
        """What a task measured. Raises RuntimeError with what it raised, or where its process ended."""
        member = self.members[name]
        try:
            self._received(member)
            member.pipe.send("measure")
            return self._received(member)
        finally:
            member.process.kill()
            member.process.join()

    def _received(self, member: _Member) -> Row:
        try:
            found = member.pipe.recv()
        except EOFError:
            member.process.join(10)  # its pipe closes before its exit code is there
            raise RuntimeError(f"its process ended with exit code {member.process.exitcode}") from None
        if "failed" in found:
            raise RuntimeError(found["failed"])
        return found  # type: ignore[no-any-return]


@contextmanager
def _alone() -> Iterator[None]:
    """What starts meanwhile compiles with one process: its fellows have the other cores."""
    name, before = "TORCHINDUCTOR_COMPILE_THREADS", os.environ.get("TORCHINDUCTOR_COMPILE_THREADS")
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _work(pipe: Connection, prepare: Prepare, given: tuple[Any, ...]) -> None:
    """One member: prepare, say so, wait for the turn, measure."""
    try:
        measure = prepare(*given)
        pipe.send({"ready": True})
        pipe.recv()
        pipe.send(measure())
    except EOFError:
        return
    except Exception as error:  # whatever a compiler raises is that row's failure
        traceback.print_exc()
        pipe.send({"failed": f"{type(error).__name__}: {error}"})
