"""Contenders that run in processes of their own, each by an interpreter of its own (see `server`), and take turns.

A process that is not asked waits, so that one runs at a time. What it is told goes through a pipe; the time of a call
is taken inside of it, by its own clock. Two processes of one engine differ for as long as they live, as two loads in
one process do: so each load is in a new process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy.engine.runner import Arrays
from mlpdeploy.errors import InputError, MachineLacks, MlpdeployError
from mlpdeploy.evidence.latency.contenders import Contender, Loadable
from mlpdeploy.evidence.latency.timing import Phases
from mlpdeploy.graph.tracing.trace import TensorSpec
from mlpdeploy.system.asked import Asked, NoAnswer, asked

SERVER = Path(__file__).with_name("server.py")
PATIENCE = 300.0
"""Seconds that an answer may take: loading a large engine, or a call of it that compiles what was left to compile."""


@dataclass(frozen=True)
class Place:
    """An interpreter, the environment variables that it is started with, and what begins errors that it is why of."""

    python: str
    variables: Mapping[str, str]
    called: str

    @contextmanager
    def started(self) -> Iterator[Server]:
        """Its process, until the body ends. Raises InputError where there is no such program."""
        with ExitStack() as stack:
            try:
                process = stack.enter_context(asked([self.python, str(SERVER)], self.variables))
            except OSError as error:
                why = error.strerror or error
                raise InputError(f"{self.called}: cannot be started ({why}): give a Python interpreter") from error
            yield Server(process, self.called)

    def contender(self, name: str, loadable: Loadable, specs: Sequence[TensorSpec], folder: Path) -> Contender:
        """An engine that is loaded and timed there; inputs are handed over in files of `folder`."""
        given: dict[int, dict[str, Any]] = {}

        def hand_over(size: int, drawn: Sequence[Arrays], count: int) -> None:
            file = folder / f"{name}-{size}.npz"
            arrays: dict[str, Any] = {
                f"{place} {port}": array for place, one in enumerate(drawn) for port, array in one.items()
            }
            np.savez(file, **arrays)
            given[size] = {"batch": size, "file": str(file), "drawn": len(drawn), "count": count}

        @contextmanager
        def load() -> Iterator[Any]:
            with self.started() as server:
                told: dict[str, Any] = {
                    "backend": loadable.backend.name,
                    "file": str(loadable.engine),
                    "facts": dict(loadable.facts),
                }
                found = Loaded(server, server.ask("load", **told)["host_clock"])
                for inputs in given.values():
                    server.ask("inputs", **inputs)
                yield found

        return Contender(name, "engine", name, tuple(specs), dict, load, hand_over)


@dataclass(frozen=True)
class Server:
    """A process of `server`; `called` begins every error that it is the reason for."""

    process: Asked
    called: str

    def ask(self, what: str, patience: float | None = None, **words: Any) -> dict[str, Any]:
        """Its answer. Raises MachineLacks or InputError, one line, where it has none, or something failed there."""
        try:
            answer = self.process.ask({"do": what, **words}, patience or PATIENCE)
        except NoAnswer as error:
            raise InputError(f"{self.called}: its process {error}") from error
        if "failed" in answer:
            raise self._failed(answer)
        return answer

    def _failed(self, answer: Mapping[str, Any]) -> MlpdeployError:
        kinds, lines = answer["failed"], str(answer["message"]).splitlines() or [""]
        kind = MachineLacks if MachineLacks.__name__ in kinds else InputError
        known = MlpdeployError.__name__ in kinds
        return kind(f"{self.called}: {lines[0] if known else f'{kinds[0]}: {lines[0]}'}")


@dataclass(frozen=True)
class Loaded:
    """An engine that is loaded there (see `clocks.Elsewhere`)."""

    server: Server
    host_clock: str | None

    def on_host(self, size: int) -> OnHost:
        """See `clocks.Elsewhere`."""
        return OnHost(self.server, size)

    def on_device(self, size: int) -> OnDevice:
        """See `clocks.Elsewhere`."""
        return OnDevice(self.server, size, self.server.ask("on_device", batch=size)["uncaptured"])


@dataclass(frozen=True)
class OnHost:
    """See `timing.Timekeeper`; a value is the place of an input."""

    server: Server
    size: int

    def seconds(self, value: int, calls: int) -> float:
        """Of a call, the mean of so many."""
        return float(self.server.ask("seconds", batch=self.size, place=value, calls=calls)["seconds"])


@dataclass(frozen=True)
class OnDevice:
    """See `clocks.OnClock`; a value is the place of an input."""

    server: Server
    size: int
    uncaptured: str | None

    def phases(self, value: int) -> Phases:
        """Of one call."""
        return Phases(*self.server.ask("phases", batch=self.size, place=value)["phases"])
