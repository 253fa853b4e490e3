"""An artifact copied whole: from a folder that others may build in to one of its own."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path

from mlpdeploy.artifact.store import (
    ATTACHED,
    MANIFEST,
    Artifact,
    acquired,
    draft,
    dump,
    lock_of,
    locked,
    open_artifact,
    require_inside,
    require_same,
)
from mlpdeploy.errors import ArtifactError, InputError
from mlpdeploy.system.files import opened, sha256, sync
from mlpdeploy.system.swap import replace_folder

TRIES = 3
"""Times that an artifact is copied, where another process builds it again while it is read."""


def copy(artifact: Artifact, folder: Path) -> Artifact:
    """This very artifact, and what was attached to it, at another folder, in one step; one that is there is replaced.

    Raises InputError where something that is no artifact lies there, or where it cannot be written, and ArtifactError
    where another engine was built in the artifact's place since it was opened.
    """
    if os.path.realpath(folder) == os.path.realpath(artifact.folder):
        require_same(artifact)
        return artifact
    with locked(folder):
        if os.path.lexists(folder) and not (folder / MANIFEST).is_file():
            raise InputError(f"{folder} exists and is no artifact of mlpdeploy: give another folder")
        with draft(folder) as copied:
            _copy_files(artifact, copied.folder)
            for path in (*copied.folder.rglob("*"), copied.folder):
                sync(path)
            replace_folder(copied.folder, folder)
    return Artifact(folder, artifact.manifest)


def copied_from(path: Path, folder: Path) -> Artifact:
    """The artifact at a path, as it is now, copied to a folder. Raises what `open_artifact` and `copy` raise."""
    for _ in range(TRIES):
        artifact = open_artifact(path)
        try:
            return copy(artifact, folder)
        except ArtifactError:  # built again meanwhile
            continue
    return copy(open_artifact(path), folder)


def _copy_files(artifact: Artifact, folder: Path) -> None:
    """This very artifact, and what was attached to it, into a folder of one's own, held against its manifest.

    Nothing else that lies beside it comes along, and no link is followed out of it. Where nobody works on the artifact,
    nobody can begin to meanwhile; a build that has begun is not waited for. Raises ArtifactError as `copy` does.
    """
    with ExitStack() as stack:
        with suppress(InputError):  # who may not write there may read
            if os.path.lexists(lock_of(artifact.folder)) and (lock := acquired(artifact.folder, None)) is not None:
                stack.callback(lock.release)
        for name in artifact.manifest["files"]:
            copy_file(artifact, name, folder / name)
        for name in ATTACHED:
            if os.path.lexists(artifact.folder / name):
                _copied(artifact, name, folder / name)
        require_same(artifact)
    (folder / MANIFEST).write_text(dump(artifact.manifest), encoding="utf-8")


def copy_file(artifact: Artifact, name: str, target: Path) -> None:
    """One of the files that the manifest names, held against it, to a path. Raises ArtifactError as `copy` does."""
    if _copied(artifact, name, target) != artifact.manifest["files"][name]["sha256"]:
        require_same(artifact)
        raise ArtifactError(f"{artifact.folder / name} was altered after it was built: build it again")


def _copied(artifact: Artifact, name: str, target: Path) -> str:
    """Copy one file; its hash. Raises ArtifactError where it is none, or not there any more."""
    source = artifact.folder / name
    require_inside(source, artifact.folder)
    try:
        with opened(source) as file:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as written:
                shutil.copyfileobj(file, written, 1 << 20)
    except OSError as error:
        if error.filename is None or Path(error.filename) != source:
            raise
        require_same(artifact)
        raise ArtifactError(f"{source} cannot be read ({error.strerror or error}): build it again") from error
    return sha256(target)
