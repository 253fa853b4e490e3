"""Processes that work at once and are timed one at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import crew
from benchmarks.gpu.crew import Crew, Task, alone

Row = dict[str, Any]


def taking_turns(known: Row, folder: str, name: str, others: int) -> Iterator[Row]:
    """Waits until all have begun, which they do only where they work at once, and then counts in its turn."""
    Path(folder, name).touch()
    while len(list(Path(folder).glob("member*"))) < others:
        time.sleep(0.01)
    with alone():
        with open(Path(folder, "alone"), "x"):  # where another one has its turn, this is an error
            time.sleep(0.1)  # a signal takes a moment to arrive
            before = counted(folder)
            time.sleep(0.1)
            stood = counted(folder) == before
        Path(folder, "alone").unlink()
    yield {"process": os.getpid(), "stood": stood, "left": ["more"]}
    yield {"process": os.getpid(), "stood": stood}


def counted(folder: str) -> str:
    path = Path(folder, "count")
    return path.read_text() if path.exists() else ""


COUNTS = "import itertools, sys\nfor n in itertools.count(): open(sys.argv[1], 'w').write(str(n))"


def counting(known: Row, folder: str) -> Iterator[Row]:
    """A process whose child never stands still by itself."""
    child = subprocess.Popen([sys.executable, "-c", COUNTS, f"{folder}/count"])
    yield {"child": child.pid, "process": os.getpid()}
    while True:
        time.sleep(1)


def broken(known: Row) -> Iterator[Row]:
    raise ValueError("no kernel for this\nGPU")
    yield {}


def ended(known: Row, number: int) -> Iterator[Row]:
    with alone():
        os.kill(os.getpid(), number)
    yield {}


def hanging(known: Row, folder: str) -> Iterator[Row]:
    while not Path(folder, "heard").exists():
        time.sleep(0.01)
    with alone():
        Path(folder, "hanging").write_text(str(os.getpid()))
        time.sleep(60)
    yield {}


def growing(known: Row) -> Iterator[Row]:
    yield {"values": [*known.get("values", []), len(known)]}


def task(name: str, work: Any, *given: Any, seconds: float = 0) -> Task:
    return Task("network", name, seconds, work, given)


def collected(made: Crew) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for one, row in made.rows():
        found.setdefault(one.name, []).append(row)
    return found


@pytest.mark.slow
def test_all_work_at_once_and_one_has_the_gpu_while_the_others_and_their_children_stand_still(tmp_path: Path) -> None:
    names, began = [f"member{index}" for index in range(3)], time.monotonic()
    done: set[str] = set()
    tasks = [task(name, taking_turns, str(tmp_path), name, 3) for name in names]
    tasks += [task("counting", counting, str(tmp_path)), task("broken", broken), task("ended", ended, signal.SIGSEGV)]

    def left() -> float:
        return 60.0 - (time.monotonic() - began) if len(done) < 6 else 0.0

    rows: dict[str, list[Row]] = {}
    made = Crew(tasks, 6, left, lambda one: None if one.name in done - {"counting"} else {})
    for one, row in made.rows():
        rows.setdefault(one.name, []).append(row)
        done |= {one.name} if "left" not in row else set()
    assert [["left" in row for row in rows[name]] for name in names] == [[True, False]] * 3
    assert all(row["stood"] for name in names for row in rows[name])
    assert len({rows[name][0]["process"] for name in names} | {os.getpid()}) == 4
    assert rows["broken"] == [{"failed": "ValueError: no kernel for this\nGPU"}]
    assert rows["ended"] == [{"failed": "its process ended with SIGSEGV"}]
    (started,) = rows["counting"]
    assert gone(started["child"], started["process"])
    assert made.left_out() == ["counting"]


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_who_keeps_the_gpu_loses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "TURN", 0.3)
    Path(tmp_path, "heard").touch()
    rows = collected(
        Crew([task("hanging", hanging, str(tmp_path)), task("growing", growing)], 1, lambda: 60.0, lambda one: {})
    )
    assert rows == {
        "hanging": [{"failed": "it had the GPU for itself for more than 0 s"}],
        "growing": [{"values": [0]}],
    }


@pytest.mark.slow
def test_a_row_goes_on_from_what_is_known_and_what_there_is_no_time_for_is_left_out() -> None:
    known: dict[str, Row | None] = {"a": {"values": [7]}, "complete": None, "long": {}}
    tasks = [task("long", growing, seconds=100), task("complete", growing), task("a", growing), task("a", growing)]
    made = Crew(tasks, 2, lambda: 60.0, lambda one: known[one.name])
    assert collected(made) == {"a": [{"values": [7, 1]}, {"values": [7, 1]}]}
    assert made.left_out() == ["long"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes end with their parent on Linux")
def test_a_killed_run_leaves_no_process_behind_that_stands_still(tmp_path: Path) -> None:
    code = (
        "from tests.evidence.latency.test_crew import *\n"
        f"folder = {str(tmp_path)!r}\n"
        "tasks = [task('counting', counting, folder), task('hanging', hanging, folder)]\n"
        "for one, row in Crew(tasks, 2, lambda: 60.0, lambda one: {}).rows():\n"
        "    print(row['child'], row['process'], flush=True)\n"
        "    Path(folder, 'heard').touch()\n"
    )
    root = Path(__file__).parents[3]
    usual = os.environ | {"TMPDIR": str(tmp_path)}  # where what is killed leaves its folder
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, env=usual, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        started = [int(word) for word in process.stdout.readline().split()]
        while not (path := tmp_path / "hanging").exists() or not path.read_text():
            time.sleep(0.01)
        process.kill()
    assert len(started) == 2 and gone(*started, int(path.read_text()))


def gone(*processes: int) -> bool:
    """Whether these have ended, in ten seconds at the latest."""
    deadline = time.monotonic() + 10
    while any(map(running, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(running, processes))
