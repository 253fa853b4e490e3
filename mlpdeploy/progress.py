"""Stages with names and times: what a build or a verification is doing, for whoever listens."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Listener(Protocol):
    """Something that shows progress; the command line's draws it in the terminal."""

    def begin(self, stage: str) -> None:
        """`stage` has begun."""

    def step(self, phase: str, done: int, total: int) -> None:
        """Within the stage, `done` of `total` steps of `phase` are finished."""

    def end(self, stage: str, seconds: float, failed: bool) -> None:
        """`stage` is over."""

    def say(self, line: str) -> None:
        """One line for the user."""


class Silent:
    """A listener that shows nothing."""

    def begin(self, stage: str) -> None:
        """Nothing."""

    def step(self, phase: str, done: int, total: int) -> None:
        """Nothing."""

    def end(self, stage: str, seconds: float, failed: bool) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


class Stages:
    """Times the stages of one command and tells its listener; `seconds` has the time of each stage so far."""

    def __init__(self, listener: Listener | None = None) -> None:
        self.listener: Listener = listener or Silent()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began, failed = time.monotonic(), True
        self.listener.begin(stage)
        try:
            yield
            failed = False
        finally:
            self.seconds[stage] = round(time.monotonic() - began, 3)
            self.listener.end(stage, self.seconds[stage], failed)

    def step(self, phase: str, done: int, total: int) -> None:
        """Pass on the steps of a backend's build or of a verification (see engine.backend.Progress)."""
        self.listener.step(phase, done, total)

    def say(self, line: str) -> None:
        """Pass on one line for the user."""
        self.listener.say(line)

    def warn(self, line: str) -> None:
        """Pass on what the user must not miss: where nobody listens, it is a warning of Python's."""
        if type(self.listener) is Silent:
            warnings.warn(line, stacklevel=2)
        else:
            self.listener.say(f"warning: {line}")
