"""Processes that prepare at once and are measured one at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.crew import Crew


def prepare(folder: str, name: str, others: int) -> Callable[[], dict[str, Any]]:
    """Waits until all have begun, which they do only where they run at once."""
    Path(folder, name).touch()
    while len(list(Path(folder).glob("member*"))) < others:
        time.sleep(0.01)

    def measure() -> dict[str, Any]:
        with open(Path(folder, "alone"), "x"):  # where another one is being measured, this is an error
            time.sleep(0.05)
        Path(folder, "alone").unlink()
        return {"process": os.getpid()}

    return measure


def broken() -> Callable[[], dict[str, Any]]:
    raise ValueError("no kernel for this\nGPU")


def ended() -> Callable[[], dict[str, Any]]:
    os._exit(7)


@pytest.mark.slow
def test_they_prepare_at_once_and_each_is_measured_alone_or_says_what_failed(tmp_path: Path) -> None:
    names = [f"member{index}" for index in range(3)]
    tasks: dict[str, Any] = {name: (prepare, (str(tmp_path), name, 3)) for name in names}
    with Crew(tasks | {"broken": (broken, ()), "ended": (ended, ())}, 60.0) as crew:
        rows = [crew.row(name)["process"] for name in names]
        assert len({*rows, os.getpid()}) == 4
        with pytest.raises(RuntimeError, match="ValueError: no kernel for this"):
            crew.row("broken")
        with pytest.raises(RuntimeError, match="ended with exit code 7"):
            crew.row("ended")
    assert not any(member.process.is_alive() for member in crew.members.values())


def test_nothing_starts_before_a_row_is_asked_for() -> None:
    with Crew({"broken": (broken, ())}, 1.0) as crew:
        assert not crew.members
