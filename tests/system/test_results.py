"""What was measured is not lost to a full disk: room is looked for before, and what finds none is still shown."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlpdeploy import commands
from mlpdeploy.commands import gating
from mlpdeploy.errors import InputError
from mlpdeploy.evidence.documents import history
from mlpdeploy.evidence.documents.regress import latency_gate
from mlpdeploy.evidence.latency import sequential_test
from mlpdeploy.selection import Selection
from mlpdeploy.system import files, results
from tests.conftest import REPOSITORY
from tests.evidence.documents.test_regress import document
from tests.terminal.test_cli import in_process

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no disk that is always full")
GATES = {
    True: latency_gate(1, sequential_test.judge([0.0] * 20, 0.03), 1.0, 1.0),
    False: latency_gate(1, sequential_test.judge([0.1] * 20, 0.03), 1.0, 1.1),
}
COMMAND = ("regress", "mixer_s32", "--baseline", "elsewhere")


def no_space(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(params=[True, False], ids=["passed", "regressed"])
def measured(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a run found, without the run."""
    found = document(GATES[request.param])
    run = SimpleNamespace(to_json=lambda: found, passed=found["passed"])
    monkeypatch.setattr(commands, "regress", lambda *_, **__: run)
    return found


@needs_full
@pytest.mark.parametrize("option", ["--save", "--junit", "--markdown"])
def test_what_cannot_be_kept_is_printed_and_the_exit_code_tells_the_verdict(
    option: str, measured: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    code = 0 if measured["passed"] else 1
    assert in_process(*COMMAND, option, str(FULL), "--json") == code
    printed = capsys.readouterr()
    assert json.loads(printed.out) == measured
    assert printed.err == "warning: /dev/full: cannot be written (No space left on device)\n"
    assert in_process(*COMMAND, option, str(FULL)) == code
    assert measured["verdict"] in capsys.readouterr().out


def test_all_files_are_written_where_there_is_room(
    measured: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save, junit, summary = (tmp_path / "new" / name for name in ("a.json", "b.xml", "c.md"))
    options = ("--save", str(save), "--junit", str(junit), "--markdown", str(summary))
    for _ in range(2):
        assert in_process(*COMMAND, *options) == (0 if measured["passed"] else 1)
    assert json.loads(save.read_text()) == measured and junit.read_text().startswith("<?xml")
    assert summary.read_text().count("### ") == 2 and capsys.readouterr().err == ""


@pytest.mark.parametrize("option", ["--save", "--junit", "--markdown"])
def test_room_is_looked_for_before_anything_is_measured(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "regress", lambda *_, **__: pytest.fail("it was measured"))
    monkeypatch.setattr(tempfile, "TemporaryFile", no_space)
    assert in_process(*COMMAND, option, str(tmp_path / "deep" / "a")) == 2
    said = capsys.readouterr().err
    assert said == f"error: {tmp_path}/deep/a: cannot be written (No space left on device); nothing was measured yet\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["bench", "regress"])
def test_the_history_has_room_before_too(command: str, tmp_path: Path) -> None:
    (tmp_path / "mixer_s32" / history.FILE).mkdir(parents=True)
    selection = Selection("mixer_s32", out=tmp_path)
    arguments = () if command == "bench" else ("elsewhere",)
    with pytest.raises(InputError, match=r"history.jsonl: cannot be written \(Is a directory\)"):
        getattr(commands, command)(selection, *arguments)


def test_a_run_whose_history_cannot_be_written_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = SimpleNamespace(to_json=lambda: document(GATES[True]))
    monkeypatch.setattr(gating, "regress", lambda *_, **__: run)
    monkeypatch.setattr("mlpdeploy.evidence.documents.history.add", no_space)
    with pytest.warns(UserWarning, match="the history cannot be written"):
        assert commands.regress(Selection("mixer_s32", out=tmp_path), "elsewhere") is run


@pytest.mark.parametrize("append", [False, True])
def test_a_file_that_was_there_stays_as_it_was_where_the_disk_is_full(
    append: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = tmp_path / "a.json", os.write
    path.write_text("before")
    monkeypatch.setattr(files, "sync", no_space)
    monkeypatch.setattr(results.os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    with pytest.raises(InputError, match=r"a.json: cannot be written \(No space left on device\)"):
        results.write(path, "after", append)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "a.json")
    results.write(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "a.json").read_text() == "text"


@needs_full
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["list", "vip_s7", "--json"]])
def test_a_full_disk_behind_stdout_is_one_line(arguments: list[str], unbuffered: str) -> None:
    with FULL.open("w") as stdout:
        found = subprocess.run(
            [sys.executable, "-m", "mlpdeploy", *arguments],
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert found.returncode == 2 and "Traceback" not in found.stderr and "Exception ignored" not in found.stderr
    errors = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
    assert errors == ["error: no space is left (No space left on device): free some"]
