"""A run that is asked to end, or killed, leaves no worktree, no temporary folder or file, and no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlpdeploy.artifact import store
from mlpdeploy.commands import baseline
from mlpdeploy.system import files, leftovers
from mlpdeploy.system.leftovers import workplace
from mlpdeploy.system.processes import Terminated, run, unwinding
from tests.conftest import REPOSITORY
from tests.terminal.test_cli import in_process
from tests.warm import Warm

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and locks of a POSIX system")
WAITING = "import os, time, pathlib\npathlib.Path({marker!r}).write_text(str(os.getpid()))\ntime.sleep(60)\n"


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def until(condition: Callable[[], bool]) -> None:
    """Wait for what comes soon."""
    for _ in range(60_000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come")


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose network waits, once it is imported, and says in `marker` which process does."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "nets.py").write_text(WAITING.format(marker=str(tmp_path / "marker")))
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "a network")
    return folder


@pytest.fixture
def waiting(repository: Path, tmp_path: Path) -> tuple[subprocess.Popen[str], int]:
    """`regress` against a revision, and the process that builds it in the worktree."""
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-m", "mlpdeploy", "regress", "nets:Net", "--backend", "onnxruntime"]
    command += ["--precision", "fp32", "--input-shape", "3,16,16", "--baseline", "git:main"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path / "tmp")}
    process = subprocess.Popen(command, cwd=repository, env=environment, stderr=subprocess.PIPE, text=True)
    marker = tmp_path / "marker"
    until(lambda: marker.exists() and marker.read_text() != "")
    return process, int(marker.read_text())


ENDLESS = """
import pathlib, time
from torch import nn

class Net(nn.Linear):
    def __init__(self): super().__init__(8, 4)
    def forward(self, x):
        pathlib.Path("marker").write_text("here")
        while True:
            time.sleep(0.01)  # line 10
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_forward_that_never_ends_is_named_when_it_is_ended(number: int, said: str, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(ENDLESS)
    command = [sys.executable, "-m", "mlpdeploy", "build", "nets:Net", "--backend", "onnxruntime"]
    command += ["--precision", "fp32", "--input-shape", "8"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    until((tmp_path / "marker").exists)
    process.send_signal(number)
    _, told = process.communicate(timeout=600)
    assert process.returncode == 128 + number
    last = told.strip().splitlines()[-1]
    assert last in (
        f"error: {said} in forward (nets.py, line {line}); the last good artifact is untouched" for line in (8, 9, 10)
    )


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_run_that_is_asked_to_end_clears_up(
    waiting: tuple[subprocess.Popen[str], int], repository: Path, tmp_path: Path, number: int, code: int
) -> None:
    process, child = waiting
    assert len(git(repository, "worktree", "list").splitlines()) == 2 and alive(child)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == code and "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith("error: ") and "the last good artifact is untouched" in stderr
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert not list((tmp_path / "tmp").iterdir())
    until(lambda: not alive(child))


def test_what_a_killed_run_left_is_cleared_by_the_next(
    waiting: tuple[subprocess.Popen[str], int],
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process, child = waiting
    process.kill()
    process.communicate()
    os.kill(child, signal.SIGKILL)
    (dead,) = (tmp_path / "tmp").iterdir()
    assert len(git(repository, "worktree", "list").splitlines()) == 2
    git(repository, "worktree", "add", "-q", "--detach", str(tmp_path / "own"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    commit = git(repository, "rev-parse", "HEAD").strip()
    with workplace() as folder:
        assert not dead.exists() and folder.exists()
        with baseline._worktree(repository, "git:main", folder / "tree", commit):
            listed = git(repository, "worktree", "list")
            # That of a run that lives stays, and one of somebody's own.
            with baseline._worktree(repository, "git:main", tmp_path / "other", commit):
                assert set(listed.splitlines()) < set(git(repository, "worktree", "list").splitlines())
    assert str(dead) not in listed and str(folder) in listed and str(tmp_path / "own") in listed
    assert len(git(repository, "worktree", "list").splitlines()) == 2


def test_a_folder_that_is_held_or_that_another_put_there_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = tmp_path / "precious"
    mine.mkdir()
    (tmp_path / f"{leftovers.PREFIX}link").symlink_to(mine)
    (tmp_path / f"{leftovers.PREFIX}fresh").mkdir()
    (tmp_path / f"{leftovers.PREFIX}old").mkdir()
    os.utime(tmp_path / f"{leftovers.PREFIX}old", (0, 0))
    with workplace() as first, workplace() as second:
        assert first.exists() and second.exists() and first != second
    assert {path.name for path in tmp_path.iterdir()} == {
        "precious", f"{leftovers.PREFIX}link", f"{leftovers.PREFIX}fresh",
    }  # fmt: skip


def test_files_of_killed_writers_go_with_the_next_write_and_with_the_next_holder_of_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "artifact" / "report.html"
    path.parent.mkdir()
    left = [path.with_name(f".{name}.{letter * 32}") for name in ("report.html", "bench.json") for letter in "ab"]
    others = [path.with_name(".report.html.txt"), path.with_name(f".report.html.{'z' * 32}"), path.with_name(".hidden")]
    for one in (*left, *others):
        one.write_text("cut sho")
    files.write(path, "whole")
    assert [one.exists() for one in left] == [False, False, True, True]
    with store.locked(path.parent):
        assert not any(one.exists() for one in left) and all(one.exists() for one in others)
    assert path.read_text() == "whole"


def test_a_file_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    with leftovers.temporary(path) as first:
        files.write(path, "second")
        leftovers.clear(tmp_path)
        first.write_text("first")
        first.replace(path)
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_children_of_a_command_end_with_the_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    inner = [sys.executable, "-c", WAITING.format(marker=str(marker))]
    outer = [sys.executable, "-c", f"import subprocess; subprocess.run({inner!r})"]

    def ask(*_: object) -> None:
        raise Terminated(signal.SIGTERM)

    before = signal.signal(signal.SIGALRM, ask)
    try:
        signal.setitimer(signal.ITIMER_REAL, 3.0)
        with pytest.raises(Terminated):
            run(outer, tmp_path)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    until(lambda: not (marker.exists() and alive(int(marker.read_text()))))


def test_signals_are_as_before_behind_it_and_those_of_others_are_theirs() -> None:
    with unwinding():
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # soon after the first: the clearing goes on
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with unwinding():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_the_exit_code_is_that_of_the_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mlpdeploy.commands.doctor", lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert in_process("doctor", "--json") == 143
    printed = capsys.readouterr()
    where = "in <lambda> (test_processes.py, line "
    assert printed.err.startswith(f"error: terminated {where}") and printed.err.count("\n") == 1
    assert printed.err.endswith("; the last good artifact is untouched\n")
    assert '"exit_code": 143' in printed.out


SIGNALLED = """
import os, signal, sys
import torch
import mlpdeploy

seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
nets = [torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)]
built = {"precision": "fp32", "backend": sys.argv[1], "batch": "1:2:4"}
engines = [mlpdeploy.compile(net, torch.ones(1, 4), **built) for net in nets]
for engine in engines:
    engine(torch.ones(1, 4))
while engines:
    os.kill(os.getpid(), signal.SIGUSR1)
    engines.pop(0).close()
os.kill(os.getpid(), signal.SIGUSR1)
assert seen == [1, 1, 1], seen
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_signals_reach_python_while_engines_are_loaded_and_behind_them(backend: str, warm: Warm) -> None:
    found = warm.run(["-c", SIGNALLED, backend], REPOSITORY)
    assert found.returncode == 0, (found.returncode, found.stderr)
