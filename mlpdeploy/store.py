"""Artifacts on disk: `<out>/<recipe>/<precision>/<backend>/`, each whole or not there at all.

    model.onnx  the engine  graph.json  manifest.json  report.md        written together, by `draft`
    quantisation.json  rows.npz                                         of an INT8 engine
    verification.json  bench.json  report.html                          added later, by `attach`

A draft is a hidden folder beside the artifact. When everything in it is on the disk, it is exchanged with the
artifact in one step (renameat2 with RENAME_EXCHANGE). Where a system has no such step, the artifact is first set
aside as `.<backend>.previous`; a writer killed in between leaves that, and the next one to open the artifact puts it
back. One lock an artifact makes writers wait for each other, so a draft that the holder of the lock finds is a dead
writer's and is removed. The manifest has size and SHA-256 of each file, and opening an artifact checks them: reading
needs no lock, so an artifact in a folder that cannot be written is read like any other.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpdeploy import documents, trust
from mlpdeploy.artifact import (
    ATTACHED,
    BENCH,
    CURVE,
    GRAPH,
    MANIFEST,
    MODEL,
    PAGE,
    QUANTISATION,
    REPORT,
    ROWS,
    SCHEMA,
    VERIFICATION,
    Artifact,
    attached,
    checked,
    leads_inside,
    read_manifest,
    read_model,
    require_same,
)
from mlpdeploy.errors import ArtifactError, InputError
from mlpdeploy.files import opened, sha256, write, writing
from mlpdeploy.files import sync as _sync
from mlpdeploy.schema import Manifest
from mlpdeploy.selection import Selection

__all__ = [
    "BENCH", "CURVE", "GRAPH", "MANIFEST", "MODEL", "PAGE", "QUANTISATION", "REPORT", "ROWS", "SCHEMA", "VERIFICATION",
    "Artifact", "Draft", "attach", "attached", "copy", "copy_files", "draft", "folder_of", "locked", "open_artifact",
    "open_whole", "place", "read_manifest", "read_model", "require_same", "sha256", "unchanged", "write",
]  # fmt: skip

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@dataclass(frozen=True)
class Draft:
    """A folder to write into, which `commit` turns into the artifact."""

    folder: Path
    target: Path

    def commit(self, manifest: dict[str, Any], report: Callable[[dict[str, Any]], str]) -> Artifact:
        """Complete the manifest with the files found here, and replace the artifact in one step.

        `report` makes the text of report.md of the complete manifest. It is for people, and written again after a
        verification, so it is not held to a hash.
        """
        files = {str(path.relative_to(self.folder)): path for path in sorted(self.folder.rglob("*")) if path.is_file()}
        facts = {name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in files.items()}
        manifest = trust.sealed({"schema": SCHEMA, **manifest, "files": facts})
        texts = {MANIFEST: _dump(manifest), REPORT: report(manifest)}
        for name, text in texts.items():
            (self.folder / name).write_text(text, encoding="utf-8")
        for path in (*files.values(), *(self.folder / name for name in texts)):
            _sync(path)
        for path in (*(p for p in self.folder.rglob("*") if p.is_dir()), self.folder):
            _sync(path)
        _replace_folder(self.folder, self.target)
        return Artifact(self.target, manifest)


def folder_of(selection: Selection, backend: str) -> Path:
    """Where the artifact of a selection lies."""
    return selection.out / selection.folder_name / selection.precision / backend


@contextmanager
def locked(
    folder: Path, say: Callable[[str], None] = lambda line: None, *, optional: bool = False
) -> Iterator[InputError | None]:
    """Hold an artifact's lock; says so where another process holds it, and waits. Clears what dead writers left.

    Raises InputError where this user cannot have it. With `optional` it goes on without, since nobody needs it to read,
    and gives that error, for who then has to write.
    """
    try:
        lock = _acquired(folder, say)
    except InputError as error:
        if not optional:
            raise
        yield error
        return
    try:
        with writing(folder, everything=True):
            _recover(folder)
        yield None
    finally:
        lock.release()


def _acquired(folder: Path, say: Callable[[str], None] | None = None) -> Any:
    """An artifact's lock, in a file that every user of the folder may open.

    Raises InputError where it cannot be had: without `say`, where another process has it, too.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(_lock(folder), mode=0o666)
    with writing(folder, everything=True):
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if say is None:
                raise
            say(f"waiting: another process is working on {folder}")
            lock.acquire()
    return lock


@contextmanager
def draft(folder: Path) -> Iterator[Draft]:
    """A draft of the artifact at `folder`, whose lock must be held; it goes away unless it was committed.

    Raises InputError, one line, where the folder cannot be written or its disk is full.
    """
    path = folder.parent / f".{folder.name}.draft-{uuid.uuid4().hex}"
    try:
        with writing(folder):
            path.mkdir()
            yield Draft(path, folder)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def copy(artifact: Artifact, folder: Path) -> Artifact:
    """This very artifact, and what was attached to it, at another folder, in one step; one that is there is replaced.

    Raises InputError where something that is no artifact lies there, or where it cannot be written, and ArtifactError
    where another engine was built in the artifact's place since it was opened.
    """
    if os.path.realpath(folder) == os.path.realpath(artifact.folder):
        return unchanged(artifact)
    with locked(folder):
        if os.path.lexists(folder) and not (folder / MANIFEST).is_file():
            raise InputError(f"{folder} exists and is no artifact of mlpdeploy: give another folder")
        with draft(folder) as copied:
            copy_files(artifact, copied.folder)
            for path in (*copied.folder.rglob("*"), copied.folder):
                _sync(path)
            _replace_folder(copied.folder, folder)
    return Artifact(folder, artifact.manifest)


def copy_files(artifact: Artifact, folder: Path) -> Artifact:
    """This very artifact, and what was attached to it, in a folder of one's own, held against its manifest.

    Nothing else that lies beside it comes along, and no link is followed out of it. Where nobody works on the artifact,
    nobody can begin to meanwhile; it does not wait for a build. Raises ArtifactError as `copy` does, and OSError where
    `folder` takes no writes.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(InputError):
            if os.path.exists(_lock(artifact.folder)):
                stack.callback(_acquired(artifact.folder).release)
        for name, facts in artifact.manifest["files"].items():
            if _copied(artifact, name, folder) != facts:
                require_same(artifact)
                raise ArtifactError(f"{artifact.folder / name} was altered: build it again with --force")
        for name in ATTACHED:
            if os.path.lexists(artifact.folder / name):
                _copied(artifact, name, folder)
        require_same(artifact)
    (folder / MANIFEST).write_text(_dump(artifact.manifest), encoding="utf-8")
    return Artifact(folder, artifact.manifest)


def unchanged(artifact: Artifact) -> Artifact:
    """The artifact as it lies in its folder now. Raises ArtifactError where it is another by now, or damaged."""
    require_same(artifact)
    return open_artifact(artifact.folder)


def attach(artifact: Artifact, name: str, text: str) -> Path:
    """Write one more file beside the engine, whole or not at all. Raises InputError where it cannot be written."""
    with writing(artifact.folder, everything=True):
        return write(artifact.folder / name, text)


def place(path: Path, text: str) -> Path:
    """Write a file outside of any artifact, in a folder that is made. Raises InputError where it cannot be written."""
    with writing(path.parent, everything=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        return write(path, text)


def open_artifact(path: Path) -> Artifact:
    """The artifact at a folder, or at a file in it, with every file checked against the manifest.

    Raises ArtifactError, naming the file, where one is missing or altered, or where the manifest cannot be used.
    """
    if not os.path.exists(path) and os.path.exists(_previous(path)):
        with locked(path):  # recovers it
            pass
    return checked(path)


def open_whole(path: Path) -> Artifact:
    """The same, whose manifest says all that any command reads in one. Raises ArtifactError where it does not."""
    artifact = open_artifact(path)
    missing = documents.missing(artifact.manifest, Manifest)
    if missing:
        raise ArtifactError(f"{path} lacks {', '.join(missing)} in its manifest: build it again with --force")
    return artifact


def _copied(artifact: Artifact, name: str, folder: Path) -> dict[str, Any]:
    """Copy one file of an artifact into a folder; its size and hash, as a manifest has them."""
    source, target, digest = artifact.folder / name, folder / name, hashlib.sha256()
    if not leads_inside(source, artifact.folder):
        raise ArtifactError(f"{source} is a link that leads out of the artifact: remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(opened(source))
        except OSError as error:
            require_same(artifact)
            raise ArtifactError(f"{source} cannot be read ({error.strerror or error})") from error
        copied = stack.enter_context(target.open("wb"))
        while block := file.read(1 << 20):
            digest.update(block)
            copied.write(block)
        return {"bytes": copied.tell(), "sha256": digest.hexdigest()}


def _replace_folder(new: Path, target: Path) -> None:
    if not target.exists():
        new.rename(target)
    elif not _exchange(new, target):
        target.rename(_previous(target))
        new.rename(target)
        shutil.rmtree(_previous(target))
    _sync(target.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders' names in one step; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV):
        return False
    raise OSError(code, os.strerror(code), str(second))


def _recover(folder: Path) -> None:
    """Finish or undo what a killed writer began; the lock must be held."""
    previous = _previous(folder)
    if previous.exists() and not folder.exists():
        previous.rename(folder)
    for leftover in (previous, *folder.parent.glob(f".{folder.name}.draft-*")):
        shutil.rmtree(leftover, ignore_errors=True)


def _lock(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.lock"


def _previous(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.previous"


def _dump(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
