"""What two calls on a GPU would measure, played with a clock that nobody waits for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import machine
from benchmarks.gpu.book import Book
from benchmarks.gpu.crew import Crew, Message, Row, Task, once
from benchmarks.gpu.kernels import CASES
from benchmarks.gpu.networks import NAMES
from benchmarks.gpu.plan import FIRST, tasks
from benchmarks.gpu.rules import EARLY, planned

pytest.importorskip("triton", reason="Triton, which the kernel is written in, is not installed")

CALL, CORES = 520.0, 16
CHANGES = planned([f"with {number}" for number in range(8)])
Step = tuple[float, str, Any]
"""Seconds of work, and then a turn of so many seconds, or a row."""


def network(task: Task, known: Row) -> list[Step]:
    """Compiles and is timed; where the kernel is in it, twice."""
    if not {"vip", "raft"} & {*task.name.replace("_", " ").split()}:
        return [(130, "turn", 3), (0, "row", {})]
    return [(130, "turn", 3), (0, "row", {"left": ["x"]}), (40, "turn", 1), (0, "row", {})]


def tuned(task: Task, known: Row) -> list[Step]:
    return [(400, "turn", 3), (0, "row", {"left": ["x"]}), (300, "turn", 1), (0, "row", {})]


def one(seconds: float, turn: float = 0.0) -> Callable[[Task, Row], list[Step]]:
    """Compiles and is timed."""
    return lambda task, known: [(seconds, "turn", turn), (0, "row", {"passed": True})]


def growing(task: Task, known: Row) -> list[Step]:
    """Compiles ours, and then a change after another."""
    row = known or {"done": [], "left": CHANGES, "tried": 0}
    steps: list[Step] = [(40, "turn", 1)]
    for label in row["left"][: task.given[-1] - row["tried"]]:
        steps += [(0, "row", {**row, "trying": label}), (25, "turn", 1)]
        row = {"done": [*row["done"], label], "left": row["left"][1:], "tried": row["tried"] + 1}
        steps.append((0, "row", row))
    return steps


def commands(task: Task, known: Row) -> list[Step]:
    return [(30, "row", {"commands": number, "left": [*range(4 - number)]}) for number in range(5)]


SCRIPTS: dict[str, Callable[[Task, Row], list[Step]]] = {
    "correctness": one(6), "roofline": one(1, 3), "engine": one(0), "kernel": one(12, 2), "rules": growing,
    "commands": commands, "epilogues": one(150, 4), "network": network, "max-autotune": tuned,
}  # fmt: skip
"""How long things took on an H100, and a little more."""


class Played:
    """A member that says what its script says, at the time that it says."""

    def __init__(self, task: Task, steps: list[Step], hands: Hands) -> None:
        self.task, self.steps, self.hands, self.stopped = task, [*steps, (0, "done", None)], hands, 0.0
        self.due = hands.now + self.steps[0][0]

    def receive(self, seconds: float | None = None) -> Message:
        _, kind, told = self.steps[0]
        if seconds is not None:
            self.hands.now += min(told, seconds)
            if told > seconds:
                raise TimeoutError("too long")
            kind = "over"
        if kind != "turn":
            del self.steps[0]
            self.due = self.hands.now + (self.steps[0][0] if self.steps else 0)
        return kind, told

    def go(self) -> None:
        self.hands.alone.append(self.task.name)

    def stand(self, still: bool) -> None:
        self.due += -self.hands.now if still else self.hands.now

    def end(self, patience: float = 0.0) -> str:
        return "it was ended"


class Hands:
    """Machines with as many cores as there are members, on which nothing takes real time."""

    def __init__(self, scripts: Callable[[Task, Row], list[Step]]) -> None:
        self.now, self.scripts, self.alone, self.busy = 8.0, scripts, list[str](), 0

    def hire(self, task: Task, known: Row) -> Played:
        return Played(task, self.scripts(task, known), self)

    def wait(self, members: Sequence[Any], seconds: float) -> list[Any]:
        self.busy = max(self.busy, len(members))
        first = min(members, key=lambda member: member.due)
        self.now = min(max(self.now, first.due), self.now + seconds)
        return [first] if first.due <= self.now else []


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Book]:
    """The book of another call: its rows are kept in memory."""
    parts = ("correctness", "kernel", "network", "commands", "rules", "engine")
    kept: dict[str, Row] = {}
    monkeypatch.setattr(machine, "clocks", lambda: None)
    monkeypatch.setattr(Book, "write", lambda self: kept.update(self.results))

    def opened() -> Book:
        found = Book(tmp_path, "cpu", False, parts)
        found.results.update(kept)
        return found

    return opened


def call(book: Book, slow: Sequence[str] = ()) -> Hands:
    """One call of the script, in which the rows that are `slow` never get ready."""

    def script(task: Task, known: Row) -> list[Step]:
        if task.name in slow:
            return [(9999, "row", {})]
        kind = "max-autotune" if task.name.endswith("max-autotune") else task.name.split()[0]
        return SCRIPTS[kind](task, known)

    hands = Hands(script)
    crew = Crew(tasks("cuda", False, 2), CORES, lambda: CALL - hands.now, book.known, hands)
    for task, row in crew.rows():
        book.add(task, row)
    assert hands.now <= CALL + 5 and hands.busy == CORES
    return hands


@pytest.mark.parametrize("slow", [[], ["network swin_t batch 128", "rules vip_s7 batch 128"]])
def test_two_calls_measure_what_counts_most_whatever_is_slow(book: Callable[[], Book], slow: list[str]) -> None:
    first = book()
    call(first, slow)
    done = {name for name, row in first.results.items() if not row.get("left") and "failed" not in row}
    assert {f"network {name} batch 128" for name in NAMES} - {*slow} <= done
    assert {f"kernel {case.name} batch 128" for case in CASES} <= done
    assert "commands inductor mixer_s32" in done and "roofline" in done
    assert sum(name.startswith("correctness") for name in done) >= 5
    ruled = [f"rules {name} batch 128" for name in NAMES if f"rules {name} batch 128" not in slow]
    changed = [first.results.get(name, {"done": []})["done"][:EARLY] for name in ruled]
    assert changed.count(CHANGES[:EARLY]) >= 10

    second = book()
    assert not set(call(second, slow).alone) & done
    both = {name for name, row in second.results.items() if not row.get("left") and "failed" not in row}
    assert {f"network {name} batch 8" for name in NAMES} <= both
    assert len({f"network {name} batch 1" for name in NAMES} & both) >= (6 if slow else 12)
    assert {name: second.results[name]["done"][:FIRST] for name in ruled} == dict.fromkeys(ruled, CHANGES[:FIRST])


def test_where_no_network_gets_ready_the_rest_is_measured(book: Callable[[], Book]) -> None:
    one = book()
    call(one, [f"network {name} batch 128" for name in NAMES])
    done = {name for name, row in one.results.items() if not row.get("left") and "failed" not in row}
    assert {f"kernel {case.name} batch 128" for case in CASES} | {"commands inductor mixer_s32"} <= done
    assert not any(name.startswith("network") for name in done)


def test_what_failed_is_tried_again_where_the_code_has_changed(
    book: Callable[[], Book], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or where a neighbour took its memory; and what only other code measured, where that is asked for."""
    rows: dict[str, Row] = {
        "failed": {"failed": "RuntimeError: no kernel"}, "memory": {"failed": "OutOfMemoryError: CUDA out of memory"},
        "context": {"failed": "AcceleratorError: CUDA error: out of memory"},
        "done": {"times": {}}, "begun": {"times": {}, "left": ["b"]}, "wrong": {"passed": False},
        "died": {"left": ["b"], "trying": "b", "ended": "it ended"}, "broke": {"left": ["b"], "ended": "it ended"},
    }  # fmt: skip
    first = book()
    for name, row in rows.items():
        first.add(task(name), row)

    def again(**changed: Any) -> dict[str, Row | None]:
        found = book()
        vars(found).update(changed)
        return {name: found.known(task(name)) for name in rows}

    begun, died = {"times": {}, "left": ["b"]}, {"left": ["b"], "trying": "b", "ended": "it ended"}
    assert again() == dict.fromkeys(rows) | {"memory": {}, "context": {}, "begun": begun, "died": died}
    assert again(code="other") == {name: None if name == "done" else {} for name in rows}
    assert again(code="other", again=True) == {name: {} for name in rows}
    assert again(parts=["kernel"]) == dict.fromkeys(rows)


def test_rows_of_another_machine_with_the_same_gpu_stand_and_tell_it(tmp_path: Path) -> None:
    here = machine.fingerprint("cpu")
    versions = here["versions"]
    others = {
        "driver": here | {"driver": "580.1", "python": "3.12.3", "versions": versions | {"numpy": "1"}},
        "torch": here | {"versions": versions | {"torch": "1.0"}},
        "gpu": here | {"gpu": "NVIDIA H100"},
    }
    for name, other in others.items():
        path = tmp_path / name / "dry-run.json"
        path.parent.mkdir()
        row = {"failed": "it is a test", "code": machine.code(), "commit": "abc1234"}
        path.write_text(json.dumps({"machine": other, "date": "2026-11-27", "results": {"network a": row}}))
        book = Book(path.parent, "cpu", True, ("network",))
        assert (book.known(task("network a")) is None) == (name == "driver")
        book.add(task("network b"), {"failed": "it is a test"})
        kept = json.loads(path.read_text())["results"]
        assert kept["network a"]["machine"] == other and "machine" not in kept["network b"]
        assert "1 rows are of driver" in path.with_suffix(".md").read_text()


def test_an_empty_folder_goes_on_from_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results").mkdir()
    monkeypatch.setattr("benchmarks.gpu.book.RESULTS", tmp_path / "results")
    Book(tmp_path / "results", "cpu", True, ("network",)).add(task("a"), {"failed": "it is a test"})
    other = Book(tmp_path / "out", "cpu", True, ("network",))
    assert other.known(task("a")) is None and other.known(task("b")) == {}
    other.add(task("b"), {"failed": "it is a test"})
    assert json.loads((tmp_path / "out" / "dry-run.json").read_text())["results"].keys() == {"a", "b"}
    assert json.loads((tmp_path / "results" / "dry-run.json").read_text())["results"].keys() == {"a"}


SPIES = """
import torch
def asked(*given):
    raise SystemExit("CUDA is asked for something")
torch._C._cuda_getDeviceCount = torch._C._cuda_init = torch.cuda.is_available = asked
import importlib
from benchmarks.gpu.plan import tasks
for module in {task.work.__module__ for task in tasks("cpu", True, 1.0)}:
    importlib.import_module(module)
assert "libcuda.so" not in open("/proc/self/maps").read(), "the driver is loaded"
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads what is loaded from /proc")
def test_what_the_server_of_processes_imports_asks_no_gpu() -> None:
    """A process forked behind CUDA's first call could not use the GPU."""
    done = subprocess.run([sys.executable, "-c", SPIES], cwd=machine.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def task(name: str) -> Task:
    return Task("network", name, 0, once, ())
