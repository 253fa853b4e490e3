"""Contenders that run in processes of their own, each by an interpreter of its own (see `server`), and take turns.

A process that is not asked waits, so that one runs at a time. What it is told goes through a pipe; the time of a call
is taken inside of it, by its own clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    """An interpreter, the environment variables that it is started with, and what it is called in messages."""

    python: str
    variables: Mapping[str, str]
    called: str

    @contextmanager
    def started(self) -> Iterator[Server]:
        """Its process, until the body ends. Raises InputError where it cannot be started."""
        with asked([self.python, str(SERVER)], self.variables) as process:
            yield Server(process, self.called)


@dataclass(frozen=True)
class Server:
    """A process of `server`; `called` begins every error that it is the reason for."""

    process: Asked
    called: str

    def ask(self, what: str, patience: float = PATIENCE, **words: Any) -> dict[str, Any]:
        """Its answer. Raises MachineLacks or InputError, one line, where it has none, or something failed there."""
        try:
            answer = self.process.ask({"do": what, **words}, patience)
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

    def contender(self, name: str, loadable: Loadable, specs: Sequence[TensorSpec], folder: Path) -> Contender:
        """An engine that it loads and times; inputs are handed over in files of `folder`."""
        self.ask("engine", backend=loadable.backend.name, file=str(loadable.engine), facts=dict(loadable.facts))
        given = set[int]()

        def hand_over(size: int, drawn: Sequence[Arrays], count: int) -> None:
            if size in given:
                return
            file = folder / f"{name}-{size}.npz"
            arrays: dict[str, Any] = {
                f"{place} {port}": array for place, one in enumerate(drawn) for port, array in one.items()
            }
            np.savez(file, **arrays)
            self.ask("inputs", batch=size, file=str(file), drawn=len(drawn), count=count)
            file.unlink()
            given.add(size)

        return Contender(name, "engine", name, tuple(specs), dict, self._load, hand_over)

    @contextmanager
    def _load(self) -> Iterator[Any]:
        yield Loaded(self, self.ask("load")["host_clock"])
        self.ask("unload")


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
