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


def endless() -> Callable[[], dict[str, Any]]:
    while True:
        time.sleep(1)


@pytest.mark.slow
def test_they_prepare_at_once_and_each_is_measured_alone_when_it_is_ready_or_says_what_failed(tmp_path: Path) -> None:
    names = [f"member{index}" for index in range(3)]
    tasks: dict[str, Any] = {"endless": (endless, ())}
    tasks |= {name: (prepare, (str(tmp_path), name, 3)) for name in names}
    rows, failed = dict[str, int](), dict[str, str]()
    with Crew(tasks | {"broken": (broken, ()), "ended": (ended, ())}) as crew:
        for name in crew.ready(lambda: 60.0 if len(rows) + len(failed) < 5 else 0.0):
            try:
                rows[name] = crew.row(name)["process"]
            except RuntimeError as error:
                failed[name] = str(error)
    assert {*rows} == {*names} and len({*rows.values(), os.getpid()}) == 4
    assert failed == {"broken": "ValueError: no kernel for this\nGPU", "ended": "its process ended with exit code 7"}
    assert not any(member.process.is_alive() for member in crew.members.values())
