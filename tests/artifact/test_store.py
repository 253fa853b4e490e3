"""Artifacts on disk: whole or not there, whatever happens to the writer."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mlpdeploy.artifact import store
from mlpdeploy.errors import ArtifactError, InputError
from mlpdeploy.system import leftovers, swap
from tests.conftest import REPOSITORY
from tests.evidence.examples import whole

FACTS: dict[str, Any] = whole(engine="engine.bin", key="k")

WRITER = """
import sys, itertools
from pathlib import Path
from mlpdeploy.artifact import store
from mlpdeploy.system import swap
from tests.evidence.examples import whole
if sys.argv[2] == "no exchange":
    swap.exchange = lambda first, second: False
folder = Path(sys.argv[1])
for generation in itertools.count(int(sys.argv[3])):
    with store.locked(folder), store.draft(folder) as draft:
        for name in ("model.onnx", "engine.bin", "more.bin"):
            (draft.folder / name).write_bytes(str(generation).encode() * 20000)
        draft.commit(whole(engine="engine.bin", generation=generation), str)
    print(generation, flush=True)
"""


def write(folder: Path, content: bytes = b"engine", **facts: Any) -> store.Artifact:
    with store.locked(folder), store.draft(folder) as draft:
        (draft.folder / "model.onnx").write_bytes(b"model")
        (draft.folder / "engine.bin").write_bytes(content)
        return draft.commit(FACTS | facts, lambda manifest: f"report on {', '.join(manifest['files'])}")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_written_and_opened(folder: Path) -> None:
    artifact = write(folder)
    assert names(folder) == {"model.onnx", "engine.bin", "report.md", "manifest.json"}
    assert (folder / "report.md").read_text() == "report on engine.bin, model.onnx"
    assert names(folder.parent) == {"backend", ".backend.lock"}
    for path in (folder, folder / "manifest.json", folder / "engine.bin"):
        assert store.open_artifact(path) == artifact
    assert artifact.manifest["files"].keys() == {"model.onnx", "engine.bin"}


@pytest.fixture(params=["exchange", "no exchange"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a folder is replaced: in one step, or as on systems that have none."""
    if request.param == "no exchange":
        monkeypatch.setattr(swap, "exchange", lambda first, second: False)
    return str(request.param)


def test_replaced(folder: Path, way: str) -> None:
    write(folder, b"one")
    store.attach(store.open_artifact(folder), store.VERIFICATION, "{}")
    write(folder, b"two")
    assert (folder / "engine.bin").read_bytes() == b"two"
    assert not (folder / store.VERIFICATION).exists()  # it was about the engine before
    assert names(folder.parent) == {"backend", ".backend.lock"}


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_exchange_is_one_step(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    if not swap.exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange two folders")
    assert ((tmp_path / "a" / "file").read_text(), (tmp_path / "b" / "file").read_text()) == ("b", "a")


def test_code_of_the_users_that_breaks_json_leaves_the_last_artifact(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write(folder)
    with monkeypatch.context() as broken:
        broken.setattr(json, "dumps", lambda *_, **__: "{}")
        with pytest.raises(ArtifactError, match="Python's json does not give back what it is given"):
            write(folder, b"other")
    assert store.open_artifact(folder) == before


@pytest.mark.parametrize("error", [RuntimeError("the engine refused"), KeyboardInterrupt()])
def test_a_failed_build_leaves_the_last_artifact(folder: Path, error: BaseException) -> None:
    before = write(folder)
    with pytest.raises(type(error)):
        with store.locked(folder), store.draft(folder) as draft:
            (draft.folder / "model.onnx").write_bytes(b"half")
            raise error
    assert store.open_artifact(folder) == before
    assert names(folder.parent) == {"backend", ".backend.lock"}


@pytest.mark.slow
@pytest.mark.parametrize("replacing", ["exchange", "no exchange"])
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_writer_killed_at_any_moment_leaves_a_whole_artifact(folder: Path, replacing: str) -> None:
    write(folder)
    chance, generation = random.Random(0), 1
    for _ in range(12):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), replacing, str(generation)],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        written = int(writer.stdout.readline())  # it is up and writing
        time.sleep(chance.uniform(0, 0.05))
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split()
        writer.stdout.close()
        writer.wait()
        reported = int(rest[-1]) if rest else written
        if replacing == "exchange":
            assert (folder / "manifest.json").exists()  # even to those who do not ask `store`
        found = store.open_artifact(folder)
        generation = found.manifest["generation"]
        assert generation in (reported, reported + 1)  # nothing reported is lost, nothing half is seen
        for name in ("model.onnx", "engine.bin", "more.bin"):
            assert (folder / name).read_bytes() == str(generation).encode() * 20000
        generation += 1
    write(folder)
    assert names(folder.parent) == {"backend", ".backend.lock"}  # and nothing stale stays


def test_killed_between_the_two_renames(folder: Path) -> None:
    before = write(folder)
    folder.rename(folder.parent / ".backend.previous")
    assert store.open_artifact(folder) == before
    assert names(folder.parent) == {"backend", ".backend.lock"}


def test_killed_after_the_two_renames(folder: Path) -> None:
    write(folder, b"old")
    shutil.copytree(folder, folder.parent / ".backend.previous")
    new = write(folder, b"new")
    assert store.open_artifact(folder) == new
    assert names(folder.parent) == {"backend", ".backend.lock"}


def test_a_second_writer_waits_and_says_so(folder: Path) -> None:
    said: list[str] = []
    order: list[str] = []
    entered, waiting = threading.Event(), threading.Event()

    def say(line: str) -> None:
        said.append(line)
        waiting.set()

    def first() -> None:
        with store.locked(folder):
            entered.set()
            assert waiting.wait(30)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(30)
    with store.locked(folder, say):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert said == [f"waiting: another process is working on {folder}"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_line_and_loses_nothing(folder: Path, code: int) -> None:
    before = write(folder)
    with pytest.raises(InputError, match=r"no space is left .*--out DIR") as caught:
        with store.locked(folder), store.draft(folder):
            raise OSError(code, os.strerror(code))
    assert "\n" not in str(caught.value)
    assert store.open_artifact(folder) == before


def test_a_full_disk_of_temporary_files_says_tmpdir(tmp_path: Path) -> None:
    source = write(tmp_path / "artifact")
    with leftovers.workplace() as folder, pytest.raises(InputError, match=r"no space is left .* set TMPDIR"):
        with store.locked(folder / "copy"), store.draft(folder / "copy"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert store.open_artifact(tmp_path / "artifact") == source


@pytest.mark.parametrize("out", ["a file", "/proc/none"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, out: str) -> None:
    if out.startswith("/proc") and not Path("/proc").is_dir():
        pytest.skip("no /proc here")
    (tmp_path / "a file").touch()
    with pytest.raises(InputError, match=r"cannot be written .*--out DIR"):
        write(tmp_path / out / "net" / "fp16" / "backend")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(folder: Path) -> None:
    before = write(folder)
    folder.parent.chmod(0o500)
    try:
        with pytest.raises(InputError, match="cannot be written"):
            write(folder, b"two")
        assert store.open_artifact(folder) == before
    finally:
        folder.parent.chmod(0o700)


def test_other_errors_of_a_build_keep_their_type(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        with store.locked(folder), store.draft(folder):
            Path("/no/such/library.so").read_bytes()


def test_attached_files_do_not_make_an_artifact_altered(folder: Path) -> None:
    artifact = write(folder)
    store.attach(artifact, store.REPORT, "another report")
    store.attach(artifact, store.VERIFICATION, "{}")
    assert store.open_artifact(folder) == artifact
    assert names(folder) == {"model.onnx", "engine.bin", "report.md", "manifest.json", "verification.json"}


def test_what_cannot_be_locked_can_be_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = write(folder)

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    with monkeypatch.context() as patched:
        patched.setattr("filelock.FileLock.acquire", refused)
        assert store.open_artifact(folder) == artifact
        with store.locked(folder, optional=True) as why:
            assert isinstance(why, InputError) and "cannot be written" in str(why)
        with pytest.raises(InputError, match="cannot be written"), store.locked(folder):
            raise AssertionError
    with store.locked(folder, optional=True) as why:
        assert why is None


@pytest.mark.skipif(os.name != "posix", reason="other systems have no modes")
@pytest.mark.parametrize(("shared", "lock"), [(0o755, 0o644), (0o2775, 0o664), (0o777, 0o666)])
def test_the_lock_serves_all_who_may_write_into_the_folder(folder: Path, shared: int, lock: int) -> None:
    folder.parent.mkdir(parents=True)
    folder.parent.chmod(shared)
    write(folder)
    assert (folder.parent / ".backend.lock").stat().st_mode & 0o777 == lock
