"""`mlpdeploy matrix` as it is typed: tables and JSON, exit codes, signals; and two runs at once on one store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mlpdeploy.evidence.documents import matrix
from mlpdeploy.terminal.matrix_table import LiveMatrix, print_matrix
from mlpdeploy.terminal.screen import Terminal
from tests.conftest import REPOSITORY
from tests.evidence.documents.test_matrix_document import FOUND
from tests.matrix.conftest import Fake, fake
from tests.system.test_processes import until
from tests.terminal.conftest import Said

__all__ = ["fake"]  # the fixture
DOCUMENT = Path("artifacts/matrix/plan.json")


def test_a_run_tells_how_each_job_ended(fake: Fake, said: Said) -> None:
    fake.plan("verify = true")
    fake.behave(cam_1d_pe_verify=["missed"])
    out, err = said("matrix", "plan.toml", code=1)
    assert "plan.toml: 1 built, 1 failed" in out and "in artifacts/matrix/plan.json" in out
    assert "cam_1d_pe fp32 onnxruntime 1:8:32: verify: the engine missed (log: artifacts/matrix/plan/" in out
    assert "built     cam_1d_cam fp32 onnxruntime 1:8:32" in err and "failed    cam_1d_pe" in err
    out, err = said("matrix", "plan.toml", "--resume", "--json", code=1)
    assert json.loads(out) == json.loads(DOCUMENT.read_text()) | {"created": json.loads(out)["created"]}
    assert "1 of 2 jobs are done already" in err


def test_the_jobs_are_listed_and_none_is_run(fake: Fake, said: Said) -> None:
    fake.plan("needs = { cpus = 2 }\n[[jobs]]\n[[jobs]]\nnetwork = 'nets:make'")
    out, _ = said("matrix", "plan.toml", "--dry-run")
    assert "cam_1d_pe fp32 onnxruntime 1:8:32   build     2 CPUs" in out and "3 jobs" in out
    rows = json.loads(said("matrix", "plan.toml", "--dry-run", "--json")[0])["rows"]
    assert [row["state"] for row in rows] == ["pending"] * 3 and not fake.calls() and not Path("artifacts").exists()
    assert [len(row["key"] or "") for row in rows] == [64, 64, 0]  # a network of one's own has none before it is traced


def test_shards_and_patterns_narrow_and_their_results_are_joined(fake: Fake, said: Said) -> None:
    fake.plan()
    for index in (1, 2):
        said("matrix", "plan.toml", "--shard", f"{index}/2", "--save", f"s{index}.json")
    assert sorted(fake.calls()) == ["build cam_1d_cam", "build cam_1d_pe"]
    out, err = said("matrix", "plan.toml", "--join", "s1.json", "s2.json", "--save", "all.json")
    assert "plan.toml: 2 built" in out and "no result" not in err and matrix.read(Path("all.json")).passed
    out, err = said("matrix", "plan.toml", "--join", "s2.json", code=1)
    assert "1 built, 1 pending" in out and "1 jobs are in no result, or were not begun: cam_1d_" in err
    out, _ = said("matrix", "plan.toml", "--only", "*_pe *", "--json")
    assert [row["job"] for row in json.loads(out)["rows"]] == ["cam_1d_pe fp32 onnxruntime 1:8:32"]
    assert not DOCUMENT.exists() and Path("artifacts/matrix/plan-only.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.toml"], "none.toml: cannot be read"),
        (["plan.toml", "--shard", "3/2"], "--shard '3/2': give INDEX/COUNT"),
        (["plan.toml", "--jobs", "0"], "--jobs 0: it must be at least 1"),
        (["plan.toml", "--retries", "-1"], "--retries -1: it must be at least 0"),
        (["plan.toml", "--only", "vip"], "--only vip: no job of plan.toml fits"),
        (["plan.toml", "a.json"], "say --join"),
        (["plan.toml", "--join"], "give the results to join"),
        (["plan.toml", "--join", "a.json", "--resume"], "--join runs nothing"),
        (["plan.toml", "--join", "a.json"], "a.json: cannot be read"),
        (["plan.toml", "--save", "."], "Is a directory"),
    ],
)
def test_what_cannot_be_meant_is_one_line(fake: Fake, fails: Any, words: list[str], message: str) -> None:
    fake.plan()
    assert message in fails("matrix", *words) and not fake.calls()


def test_a_table_shows_names_and_obeys_none(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J\u202e[red]"
    document = FOUND.to_json()
    for row in document["rows"]:
        row |= {"job": row["job"] + evil, "error": evil, "log": evil}
    rows = tuple(matrix.Row.from_json(row) for row in document["rows"])
    found = matrix.Matrix(FOUND.created, {"path": evil, "sha256": ""}, {"index": 1, "count": 2}, {}, rows)
    print_matrix(Terminal(width=80), found, evil)
    live = LiveMatrix(Terminal(width=80), 3)
    live.ended(rows[0])
    live.say(evil)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\u202e" not in printed and "[red]" in printed and "shard 1/2" in printed
    assert "1: 0.5" in printed and "75.00%" in printed


PROGRAM = """
import sys
from mlpdeploy.matrix import run_job
run_job.COMMAND = (sys.executable, "-S", {command!r})
from mlpdeploy.terminal.cli import main
main(["matrix", "plan.toml", "--jobs", "2"])
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of a POSIX system")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_asked_to_end_ends_its_jobs_and_keeps_what_is_done(fake: Fake, number: int, code: int) -> None:
    fake.plan("", ["cam_1d_noenc", "cam_1d_cam", "cam_1d_pe"])
    fake.behave(cam_1d_cam_build=["waits"], cam_1d_pe_build=["waits"])
    program = PROGRAM.format(command=str(REPOSITORY / "tests" / "matrix" / "fake_command.py"))
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE, text=True)
    until(lambda: len(fake.calls("waiting")) == 2)
    # The document is written before the run hears of what has begun behind it.
    until(lambda: matrix.read(DOCUMENT).rows[0].done)
    time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate(timeout=100)
    assert process.returncode == code and "Traceback" not in err and err.splitlines()[-1].startswith("error: ")
    assert sorted(fake.calls("cleared")) == ["cam_1d_cam", "cam_1d_pe"]
    assert [row.state for row in matrix.read(DOCUMENT).rows] == ["built", "cancelled", "cancelled"]


@pytest.mark.large
def test_two_runs_at_once_build_nothing_twice(tmp_path: Path) -> None:
    """With the real commands: the second waits for the artifact's lock, and finds it built."""
    (tmp_path / "plan.toml").write_text(
        'network = "cam_1d_cam"\nprecision = "fp32"\nbackend = "onnxruntime"\nbatch = 1\nverify = { quick = true }'
    )
    words = [sys.executable, "-m", "mlpdeploy", "matrix", "plan.toml", "--json", "--save"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    how: dict[str, Any] = {"cwd": tmp_path, "env": environment, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([*words, name], **how) for name in ("a.json", "b.json")]
    rows = [json.loads(process.communicate(timeout=300)[0])["rows"][0] for process in both]
    assert sorted(row["state"] for row in rows) == ["built", "cached"] and rows[0]["files"] == rows[1]["files"]
    assert all(0 < row["facts"]["of_budget"] <= 1 and row["facts"]["engine_bytes"] > 0 for row in rows)
