"""Where artifacts of many machines come together: each is there whole, or the one before it is."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mlpdeploy.artifact import store
from mlpdeploy.artifact.archive import pack, unpack
from mlpdeploy.artifact.depot import Depot, Folder, Remote, depot_at
from mlpdeploy.errors import ArtifactError, InputError, MachineLacks
from tests.artifact.test_store import names, write
from tests.conftest import REPOSITORY

PLACE = "net/fp16/backend"


@pytest.fixture(params=["folder", "memory", "file"])
def depot(request: pytest.FixtureRequest, tmp_path: Path) -> Depot:
    """An empty one of each kind."""
    urls = {"memory": f"memory://{uuid.uuid4().hex}/store", "file": f"file://{tmp_path}/remote"}
    return Folder(tmp_path / "depot") if request.param == "folder" else Remote(urls[request.param])


@pytest.fixture
def remote() -> Remote:
    return Remote(f"memory://{uuid.uuid4().hex}")


def packed(tmp_path: Path, content: bytes = b"engine") -> Path:
    return pack(write(tmp_path / "made" / content.hex()[:16], content), tmp_path / f"packed-{content.hex()[:16]}")


def content_of(depot: Depot, tmp_path: Path) -> bytes | None:
    """The engine that is there, held against its manifest; None without one."""
    taken = tmp_path / f"taken-{uuid.uuid4().hex}"
    if not depot.take(PLACE, taken):
        return None
    return (unpack(taken, tmp_path / f"at-{uuid.uuid4().hex}").folder / "engine.bin").read_bytes()


def left(remote: Remote) -> list[str]:
    files, root = fsspec.core.url_to_fs(remote.url)
    return [path.removeprefix(root).strip("/") for path in files.find(root)]


def test_what_is_put_there_can_be_taken_and_replaced(depot: Depot, tmp_path: Path) -> None:
    assert content_of(depot, tmp_path) is None
    for content in (b"first", b"second"):
        depot.put(packed(tmp_path, content), PLACE)
        assert content_of(depot, tmp_path) == content
    assert depot.where(PLACE).removesuffix(".zip").endswith(PLACE)


def test_what_is_not_whole_is_not_put_there(depot: Depot, tmp_path: Path) -> None:
    depot.put(packed(tmp_path, b"first"), PLACE)
    path = packed(tmp_path, b"second")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="cut short"):
        depot.put(path, PLACE)
    assert content_of(depot, tmp_path) == b"first"


@pytest.mark.parametrize("depot", ["folder", "file"], indirect=True)  # all who read fsspec's memory share one position
def test_several_at_once_leave_one_of_theirs_whole(depot: Depot, tmp_path: Path) -> None:
    paths = [packed(tmp_path, bytes([65 + number]) * 5000) for number in range(4)]
    depot.put(paths[0], PLACE)
    found, failed = list[bytes | None](), list[Exception]()

    def work(path: Path) -> None:
        try:
            for _ in range(3):
                depot.put(path, PLACE)
                found.append(content_of(depot, tmp_path))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(path,)) for path in paths]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not failed and all(one is not None and one == one[:1] * 5000 for one in found)
    if isinstance(depot, Remote):
        assert left(depot) == [f"{PLACE}.zip"]


def test_a_folder_is_as_a_build_leaves_it_and_what_is_damaged_there_is_not_taken(tmp_path: Path) -> None:
    depot = Folder(tmp_path / "out")
    depot.put(packed(tmp_path), PLACE)
    folder = tmp_path / "out" / PLACE
    assert names(folder) == {"model.onnx", "engine.bin", "report.md", "manifest.json"}
    (folder / "engine.bin").write_bytes(b"engima")
    assert not depot.take(PLACE, tmp_path / "taken")
    assert depot.where(PLACE) == str(folder)


def test_what_is_altered_in_a_remote_store_is_refused_where_it_is_unpacked(remote: Remote, tmp_path: Path) -> None:
    remote.put(packed(tmp_path), PLACE)
    files, root = fsspec.core.url_to_fs(remote.url)
    files.pipe_file(f"{root}/{PLACE}.zip", files.cat_file(f"{root}/{PLACE}.zip")[:-9])
    with pytest.raises(ArtifactError, match="cut short"):
        content_of(remote, tmp_path)


@pytest.mark.parametrize("fails", [False, True])
def test_a_write_that_goes_half_way_changes_nothing(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    remote.put(packed(tmp_path, b"first"), PLACE)

    def half(files: MemoryFileSystem, local: str, path: str, **_: Any) -> None:
        files.pipe_file(path, Path(local).read_bytes()[:200])
        if fails:
            raise ConnectionError("the line\nis cut")

    monkeypatch.setattr(MemoryFileSystem, "put_file", half)
    with pytest.raises(InputError, match="the line is cut" if fails else "is not what was built") as raised:
        remote.put(packed(tmp_path, b"second"), PLACE)
    assert "\n" not in str(raised.value)
    assert content_of(remote, tmp_path) == b"first" and left(remote) == [f"{PLACE}.zip"]


def test_a_writer_that_is_killed_leaves_what_was_there(tmp_path: Path) -> None:
    """It dies between the draft and its place."""
    remote = Remote(f"file://{tmp_path}/remote")
    remote.put(packed(tmp_path, b"first"), PLACE)
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom fsspec.implementations.local import LocalFileSystem\n"
        "from mlpdeploy.artifact.depot import Remote\n"
        "LocalFileSystem.mv = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"Remote({remote.url!r}).put(Path(sys.argv[1]), {PLACE!r})"
    )
    command = [sys.executable, "-c", program, str(packed(tmp_path, b"second"))]
    assert subprocess.run(command, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}).returncode == -9
    assert content_of(remote, tmp_path) == b"first"
    assert [name.partition("draft")[0] for name in left(remote)] == [f"{PLACE}.zip", f"{PLACE}.zip."]


def test_a_store_is_a_folder_or_what_fsspec_reaches(tmp_path: Path) -> None:
    for text in (str(tmp_path), f"file://{tmp_path}", f"local://{tmp_path}"):
        found = depot_at(text)
        assert isinstance(found, Folder) and found.root == tmp_path
    found = depot_at("memory://somewhere/else/")
    assert isinstance(found, Remote) and left(found) == [] and found.url == "memory://somewhere/else"


def test_a_store_that_cannot_be_used_is_one_line_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--store nowhere://x: Protocol not known: nowhere"):
        depot_at("nowhere://x")
    fsspec.register_implementation("absent", "no_such_module.Files", errtxt="Install absent-fs", clobber=True)
    with pytest.raises(MachineLacks, match=r"--store absent://x needs a package .*Install absent-fs"):
        depot_at("absent://x")
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", lambda *_, **__: (_ for _ in ()).throw(PermissionError("no")))
    with pytest.raises(InputError, match="--store memory://x: no"):
        depot_at("memory://x")


def test_two_processes_and_a_reader_of_one_folder(tmp_path: Path) -> None:
    """What a desk and a build of the same folder do at once: both hold the artifact's lock while they write."""
    depot = Folder(tmp_path / "out")
    path = packed(tmp_path)
    with store.locked(tmp_path / "out" / PLACE):
        waiting = threading.Thread(target=depot.put, args=(path, PLACE))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive() and not (tmp_path / "out" / PLACE).exists()
    waiting.join()
    assert content_of(depot, tmp_path) == b"engine"
