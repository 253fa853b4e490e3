"""Artifacts on disk: `<out>/<recipe>/<precision>/<backend>/`, each whole or not there at all.

    model.onnx  the engine  graph.json  manifest.json  report.md        written together, by `draft`
    quantisation.json  rows.npz                                         of an INT8 or FP8 engine
    layers.json                                                         of a TensorRT engine
    verification.json  evaluation.json  bench.json  profile.json  report.html    added later, by `attach`

A draft is a hidden folder beside the artifact. When everything in it is on the disk, it is exchanged with the artifact
in one step (renameat2 with RENAME_EXCHANGE). Where a system has no such step, the artifact is first set aside as
`.<backend>.previous`; the next one to open the artifact puts back what a writer leaves that is killed in between. One
lock an artifact makes writers wait for each other, so a draft that its holder finds is a dead writer's and is removed.
The manifest has size and SHA-256 of each file, and opening an artifact checks them.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpdeploy.artifact import schema, trust
from mlpdeploy.engine.backend import MODEL as MODEL
from mlpdeploy.errors import ArtifactError, InputError
from mlpdeploy.system import documents
from mlpdeploy.system.files import read_text, sha256, sync, write
from mlpdeploy.system.leftovers import FULL, clear, lies_in_temporary, no_room
from mlpdeploy.system.swap import previous_of, replace_folder

SCHEMA = 3
GRAPH, MANIFEST = "graph.json", "manifest.json"
VERIFICATION, BENCH, REPORT, PAGE = "verification.json", "bench.json", "report.md", "report.html"
EVALUATION, PROFILE = "evaluation.json", "profile.json"
"""What `evaluate` found; and the time of each layer as `trtexec` exports it, of the last bench."""
QUANTISATION, ROWS, CURVE = "quantisation.json", "rows.npz", "curve.svg"
"""Ranges of an INT8 or FP8 engine: with them `verify` makes the same graph again without the calibration's data."""

DOCUMENTS: dict[str, Any] = {
    GRAPH: schema.GRAPH,
    VERIFICATION: schema.VERIFICATION,
    EVALUATION: schema.EVALUATION,
    BENCH: {"kind": object, "schema": object},
}
"""The documents beside a manifest, and of which kind each is; what is in bench.json its version says."""

ATTACHED = (VERIFICATION, EVALUATION, BENCH, PROFILE, REPORT, PAGE)
"""What is added to an artifact after it was built."""


@dataclass(frozen=True)
class Artifact:
    """An artifact whose files were found to be those that its manifest names; `cached` where a build only found it."""

    folder: Path
    manifest: dict[str, Any]
    cached: bool = False

    @property
    def model(self) -> Path:
        """The ONNX file."""
        return self.folder / MODEL

    @property
    def engine(self) -> Path:
        """The engine file, or folder."""
        return self.folder / str(self.manifest["engine"])


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
        described = {"schema": SCHEMA, **manifest, "files": facts}
        read = json.loads(json.dumps(described))
        if read.keys() != described.keys():  # the user's code ran in this process
            raise ArtifactError("Python's json does not give back what it is given: does the network's code change it?")
        manifest = trust.sealed(read)
        texts = {MANIFEST: dump(manifest), REPORT: report(manifest)}
        for name, text in texts.items():
            (self.folder / name).write_text(text, encoding="utf-8")
        folders = (path for path in self.folder.rglob("*") if path.is_dir())
        for path in (*files.values(), *(self.folder / name for name in texts), *folders, self.folder):
            sync(path)
        replace_folder(self.folder, self.target)
        return Artifact(self.target, manifest)


@contextmanager
def locked(
    folder: Path, say: Callable[[str], None] = lambda line: None, *, optional: bool = False
) -> Iterator[InputError | None]:
    """Hold an artifact's lock; says so where another process holds it, and waits. Clears what dead writers left.

    Raises InputError where this user cannot have it. With `optional` it goes on without, since nobody needs it to read,
    and gives that error, for who then has to write.
    """
    try:
        lock = acquired(folder, say)
    except InputError as error:
        if not optional:
            raise
        yield error
        return
    try:
        with _writing(folder, everything=True):
            _recover(folder)
        yield None
    finally:
        lock.release()


def acquired(folder: Path, say: Callable[[str], None] | None) -> Any:
    """An artifact's lock, in a file that every user who may write into its folder can open; it is waited for.

    None where another process has it, without `say`. Raises InputError where this user cannot have it.
    """
    from filelock import FileLock, Timeout

    with _writing(folder, everything=True):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_of(folder), mode=0o600 | folder.parent.stat().st_mode & 0o666)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if say is None:
                return None
            say(f"waiting: another process is working on {folder}")
            lock.acquire()
    return lock


def lock_of(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.lock"


@contextmanager
def draft(folder: Path) -> Iterator[Draft]:
    """A draft of the artifact at `folder`, whose lock must be held; it goes away unless it was committed.

    Raises InputError, one line, where the folder cannot be written or its disk is full.
    """
    path = folder.parent / f".{folder.name}.draft-{uuid.uuid4().hex}"
    try:
        with _writing(folder):
            path.mkdir()
            yield Draft(path, folder)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def require_same(artifact: Artifact) -> None:
    """Raises ArtifactError where another artifact lies in the folder than when it was opened."""
    if read_manifest(artifact.folder) != artifact.manifest:
        raise ArtifactError(
            f"{artifact.folder} was replaced since it was loaded: load it again, and it is the engine that is there now"
        )


def attached(artifact: Artifact, name: str) -> dict[str, Any] | None:
    """A JSON document beside the engine; None where there is none. Raises ArtifactError where it cannot be used."""
    path = artifact.folder / name
    require_inside(path, artifact.folder)
    return documents.read(path, DOCUMENTS[name])


def beside(artifact: Artifact, name: str) -> str | None:
    """The text of a file beside the engine; None where there is none. Raises ArtifactError where it cannot be read."""
    path = artifact.folder / name
    require_inside(path, artifact.folder)
    try:
        return read_text(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} cannot be read ({getattr(error, 'strerror', None) or error}): remove it"
        ) from error


def attach(artifact: Artifact, name: str, text: str) -> Path:
    """Write one more file beside the engine, whole or not at all. Raises InputError where it cannot be written."""
    with _writing(artifact.folder, everything=True):
        return write(artifact.folder / name, text)


def place(path: Path, text: str) -> Path:
    """Write a file outside of any artifact, in a folder that is made. Raises InputError where it cannot be written."""
    with _writing(path.parent, everything=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        return write(path, text)


def open_artifact(path: Path) -> Artifact:
    """The artifact at a folder, or at a file in it, with every file checked against the manifest.

    Raises ArtifactError, naming the file, where one is missing or altered, or where the manifest cannot be used.
    """
    folder = path.parent if os.path.isfile(path) else path
    if not os.path.exists(folder) and os.path.exists(previous_of(folder)):
        with locked(folder):  # recovers it
            pass
    manifest = read_manifest(folder)
    try:
        problem = _problem(folder, manifest)
        # A build may have replaced the artifact since its manifest was read: then the new one counts.
        while problem is not None and (again := read_manifest(folder)) != manifest:
            manifest, problem = again, _problem(folder, again)
    except OSError as error:
        raise ArtifactError(f"{error.filename or folder} cannot be read ({error.strerror or error})") from error
    if problem is not None:
        raise ArtifactError(f"{problem}: build it again with --force")
    return Artifact(folder, manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest alone. Raises ArtifactError where there is none, or none of this version."""
    path, again = folder / MANIFEST, "build it again with --force"
    require_inside(path, folder)
    manifest = documents.read(path, {"schema": object, "files": {str: object}}, again)
    if manifest is None:
        raise ArtifactError(f"there is no artifact at {folder}: run `mlpdeploy build` first")
    if manifest["schema"] != SCHEMA:
        raise ArtifactError(f"{path} has schema {manifest['schema']}, this mlpdeploy reads {SCHEMA}: {again}")
    if (problem := documents.wrong(manifest, schema.MANIFEST)) is not None:
        raise ArtifactError(f"{path} is damaged or of another version ({problem}): {again}")
    return manifest


def _problem(folder: Path, manifest: dict[str, Any]) -> str | None:
    """Which file is not the one that the manifest names, or None."""
    named = manifest["files"]
    if MODEL not in named or not any(f == manifest["engine"] or f.startswith(f"{manifest['engine']}/") for f in named):
        return f"{folder / MANIFEST} does not name the model and the engine"
    for name, facts in named.items():
        path = folder / name
        if not _is_inside(path, folder):
            return f"{folder / MANIFEST} names {name}, outside the artifact"
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != facts["bytes"] or sha256(path) != facts["sha256"]:
            return f"{path} was altered after it was built"
    return None


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a path, its links followed, is in a folder."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def require_inside(path: Path, folder: Path) -> None:
    if os.path.lexists(path) and not _is_inside(path, folder):
        raise ArtifactError(f"{path} is a link that leads out of the artifact: remove it")


def _recover(folder: Path) -> None:
    """Finish or undo what a killed writer began; the lock must be held."""
    previous = previous_of(folder)
    if previous.exists() and not folder.exists():
        previous.rename(folder)
    for leftover in (previous, *folder.parent.glob(f".{folder.name}.draft-*")):
        shutil.rmtree(leftover, ignore_errors=True)
    clear(folder)


def dump(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


@contextmanager
def _writing(folder: Path, *, everything: bool = False) -> Iterator[None]:
    """Turn the errors of a disk that takes no writes into one line; every OSError of the body with `everything`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in FULL and lies_in_temporary(folder):
            raise no_room(error) from error
        if error.errno in FULL:
            raise InputError(f"no space is left for {folder} ({reason}): free some or pass --out DIR") from error
        ours = error.filename is not None and str(folder.parent) in str(error.filename)
        if everything or ours or error.errno == errno.EROFS:
            raise InputError(f"{folder} cannot be written ({reason}): pass --out DIR with a folder that can") from error
        raise
