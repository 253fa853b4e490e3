"""Streams that a process was started without, that nobody reads to their end, or whose encoding lacks characters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlpdeploy.terminal.screen import Terminal
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a shell redirects them")


def shell(line: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line of bash, in which $M is the command; its exit code is that of the first command that failed."""
    known = {"PYTHONPATH": str(REPOSITORY), "M": f"{sys.executable} -m mlpdeploy", "NO_COLOR": "1"}
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        cwd=tmp_path, env=os.environ | known | environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("command", ["--help", "list", "list --rules --json", "doctor"])
def test_a_reader_that_leaves_is_no_failure(command: str, tmp_path: Path) -> None:
    found = shell(f"$M {command} | head -1", tmp_path)
    assert (found.returncode, found.stderr) == (0, "")


def test_a_command_keeps_its_exit_code_when_its_reader_leaves(tmp_path: Path) -> None:
    found = shell("$M inspect nothing --json | head -c 0", tmp_path)
    assert found.returncode not in (0, 70) and "Traceback" not in found.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_leads_nowhere(closed: str, tmp_path: Path) -> None:
    found = shell(f"$M list {closed}", tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    assert ("mixer_s32" in found.stdout) is (">&-" not in closed.replace("2>&-", ""))


def test_the_next_file_is_not_taken_for_a_stream_that_is_closed(tmp_path: Path) -> None:
    """Its descriptor would be that of stdout: what is printed would be in it."""
    code = (
        "import sys; from mlpdeploy.system import streams; streams.require(); f = open('file', 'w'); print('printed')"
    )
    found = shell(f'"{sys.executable}" -c "{code}" <&- >&- 2>&-', tmp_path)
    assert found.returncode == 0 and (tmp_path / "file").read_text() == ""


def test_what_an_encoding_lacks_is_a_question_mark(tmp_path: Path) -> None:
    found = shell("$M doctor && $M list", tmp_path, PYTHONIOENCODING="ascii")
    assert found.returncode == 0 and "mixer_s32" in found.stdout and found.stdout.isascii()
    words = "from mlpdeploy.system import streams; streams.require(); print('\\u2581\\u2588 3')"
    found = shell(f'"{sys.executable}" -c "{words}"', tmp_path, PYTHONIOENCODING="ascii")
    assert (found.returncode, found.stdout) == (0, "?? 3\n")


def test_json_reaches_a_pipe_whole(tmp_path: Path) -> None:
    assert len(json.loads(shell("$M list --json | cat", tmp_path).stdout)) > 100


def test_a_broken_pipe_ends_no_command() -> None:
    """Rich's own console would end the process, with 1."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as file:
        terminal = Terminal(file=file)
        terminal.print("more")
        terminal.print("and more")
