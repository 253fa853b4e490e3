"""A command that is tied to its parent gives its own exit code, and ends with the parent, with all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlpdeploy.system import tied
from tests.system.test_processes import alive, until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="process groups of a POSIX system")]
TIED = (sys.executable, "-I", "-S", tied.__file__)
CHILD = """
import os, pathlib, signal, subprocess, sys, time
mark = pathlib.Path(sys.argv[1])
def end(*_):
    (mark / "cleared").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, end if sys.argv[2] == "clears" else signal.SIG_IGN)
other = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
(mark / "pids.new").write_text(f"{os.getpid()} {other.pid} {os.getppid()}")
(mark / "pids.new").rename(mark / "pids")
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys
subprocess.Popen([*sys.argv[1:5], str(os.getpid()), *sys.argv[5:]], process_group=0).wait()
"""


def tied_to_this(*command: str, stdout: int | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*TIED, str(os.getpid()), *command], process_group=0, stdout=stdout)


@pytest.mark.parametrize(("program", "code"), [("print(7)", 0), ("raise SystemExit(3)", 3)])
def test_its_exit_code_and_output_are_the_commands(program: str, code: int) -> None:
    process = tied_to_this(sys.executable, "-S", "-c", program, stdout=subprocess.PIPE)
    assert process.communicate(timeout=60)[0] == (b"" if code else b"7\n")
    assert process.returncode == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_a_signal_that_ends_the_command_is_told(number: int) -> None:
    process = tied_to_this(sys.executable, "-S", "-c", f"import os; os.kill(os.getpid(), {int(number)})")
    assert process.wait(60) == -number


def begun(tmp_path: Path, how: str) -> tuple[subprocess.Popen[bytes], list[int]]:
    """A parent whose tied command waits, and the processes of that: itself, what it started, and what waits for it."""
    command = [sys.executable, "-S", "-c", CHILD, str(tmp_path), how]
    parent = subprocess.Popen([sys.executable, "-S", "-c", PARENT, *TIED, *command])
    until((tmp_path / "pids").exists)
    return parent, [int(word) for word in (tmp_path / "pids").read_text().split()]


@pytest.mark.parametrize("killed", ["parent", "between", "both"])
def test_it_ends_with_its_parent_and_clears_what_it_began(tmp_path: Path, killed: str) -> None:
    parent, pids = begun(tmp_path, "clears")
    for pid in {"parent": [parent.pid], "between": [pids[2]], "both": [parent.pid, pids[2]]}[killed]:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(alive, pids)))
    parent.wait()
    assert (tmp_path / "cleared").exists()


def test_one_that_does_not_end_when_asked_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = tmp_path / "tied.py"
    quick.write_text(Path(tied.__file__).read_text().replace("GRACE = 0.25, 5.0", "GRACE = 0.25, 0.5"))
    monkeypatch.setattr(sys.modules[__name__], "TIED", (*TIED[:-1], str(quick)))
    parent, pids = begun(tmp_path, "ignores")
    parent.kill()
    until(lambda: not any(map(alive, pids)))
    parent.wait()


def test_the_whole_group_can_be_asked_to_end_as_without_it(tmp_path: Path) -> None:
    process = tied_to_this(sys.executable, "-S", "-c", CHILD, str(tmp_path), "clears")
    until((tmp_path / "pids").exists)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 143 and (tmp_path / "cleared").exists()
