"""What the tests of a matrix can use: commands that end at once, and plans in a folder of their own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mlpdeploy.artifact import store
from mlpdeploy.evidence.documents.matrix import Row
from mlpdeploy.matrix import elsewhere, plan, run_job
from mlpdeploy.matrix.executor import Running
from mlpdeploy.matrix.job import Job
from tests.evidence.examples import FACTS, whole
from tests.matrix.away import Away

FILES = {name: {"bytes": 3, "sha256": "ab" * 32} for name in ("model.onnx", "engine.onnx")}
LAUNCHES = {"launches": {"total": 7, "by_kind": {}, "source_bytes": 0}}


@dataclass
class Fake:
    """The folder of a run whose commands are those of `fake_command`."""

    folder: Path
    plan_file: Path = field(init=False)

    def __post_init__(self) -> None:
        self.plan_file = self.folder / "plan.toml"
        self.behave()
        manifest = {"schema": store.SCHEMA, "files": FILES} | whole(facts=FACTS | LAUNCHES)
        (self.folder / "manifest.json").write_text(json.dumps(manifest))

    def behave(self, **how: Sequence[str]) -> None:
        """What commands do with a network: `cam_1d_pe_build=["killed", "passed"]`."""
        split = {" ".join(what.rsplit("_", 1)): [*each] for what, each in how.items()}
        (self.folder / "behaviour.json").write_text(json.dumps(split))

    def plan(self, text: str = "", networks: Sequence[str] = ("cam_1d_cam", "cam_1d_pe")) -> plan.Plan:
        """A plan of these networks, in FP32 with ONNX Runtime."""
        named = f'network = {json.dumps(networks)}\nprecision = "fp32"\nbackend = "onnxruntime"\n'
        self.plan_file.write_text(named + text)
        return plan.read(self.plan_file)

    def job(self, text: str = "") -> Job:
        """The one job of a plan."""
        (job,) = self.plan(text, ["cam_1d_cam"]).jobs
        return job

    def calls(self, word: str = "begin") -> list[str]:
        """What commands did so far: `build cam_1d_pe`, without their arguments."""
        path = self.folder / "calls.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [" ".join(line.split()[1:3]) for line in lines if line.startswith(word)]

    def lines(self) -> list[str]:
        """The same, line by line."""
        return (self.folder / "calls.txt").read_text().splitlines()


class Listening:
    """A watcher that remembers; `then` is called with each command that begins."""

    def __init__(self, then: Callable[[Running], None] = lambda running: None) -> None:
        self.rows: list[Row] = []
        self.said: list[str] = []
        self.waiting: list[str] = []
        self.were_done: list[str] = []
        self.then = then

    def kept(self, rows: Sequence[Row]) -> None:
        self.were_done = [row.job for row in rows]

    def begun(self, running: Running) -> None:
        self.then(running)

    def waits(self, row: Row) -> None:
        self.waiting.append(row.job)

    def ended(self, row: Row) -> None:
        self.rows.append(row)

    def say(self, line: str) -> None:
        self.said.append(line)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Commands of jobs are those of `fake_command`, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(run_job, "COMMAND", (sys.executable, "-S", str(Path(__file__).with_name("fake_command.py"))))
    return Fake(tmp_path)


def by_job(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows by the network of their job."""
    return {row.selection["name"]: row for row in rows}


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Away:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # as a cluster sets it
    command = (sys.executable, "-S", str(Path(__file__).with_name("whole_command.py")))
    monkeypatch.setattr(elsewhere, "COMMAND", command)
    return Away(tmp_path)
