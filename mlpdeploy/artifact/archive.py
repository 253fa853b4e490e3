"""An artifact as one file, which travels between machines: whole and held against its manifest where it arrives.

The file is a ZIP archive of what the manifest names, what was attached, and the manifest itself. Nothing in it is
compressed, ordered otherwise or dated, so that the same artifact is the same bytes.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

from mlpdeploy.artifact.store import ATTACHED, MANIFEST, Artifact, draft, locked, open_artifact, require_inside
from mlpdeploy.errors import ArtifactError, InputError
from mlpdeploy.system import files
from mlpdeploy.system.files import LARGEST_DOCUMENT, opened, sync
from mlpdeploy.system.swap import replace_folder

DATE = (1980, 1, 1, 0, 0, 0)
"""The date of everything in an archive: ZIP's first."""


def pack(artifact: Artifact, path: Path) -> Path:
    """Write an artifact, and what was attached to it, as one file. Raises OSError, and ArtifactError for a link out."""
    attached = (name for name in ATTACHED if os.path.lexists(artifact.folder / name))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in (*sorted(artifact.manifest["files"]), *attached, MANIFEST):
            require_inside(artifact.folder / name, artifact.folder)
            with opened(artifact.folder / name) as source:
                with archive.open(zipfile.ZipInfo(name, DATE), "w", force_zip64=True) as member:
                    shutil.copyfileobj(source, member, 1 << 20)
    return path


def unpack(path: Path, folder: Path) -> Artifact:
    """Put the artifact in a file at `folder`, in one step; one that is there is replaced.

    Raises ArtifactError where the file was cut short, or holds anything but an artifact whose files are those that its
    manifest names; InputError where something else lies at `folder`, or it cannot be written. What was there stays.
    """
    with locked(folder):
        if os.path.lexists(folder) and not (folder / MANIFEST).is_file():
            raise InputError(f"{folder} exists and is no artifact of mlpdeploy: give another folder")
        with draft(folder) as arrived:
            _extract(path, arrived.folder)
            artifact = _whole(arrived.folder)
            for one in (*arrived.folder.rglob("*"), arrived.folder):
                sync(one)
            replace_folder(arrived.folder, folder)
    return Artifact(folder, artifact.manifest)


def _whole(folder: Path) -> Artifact:
    try:
        return open_artifact(folder)
    except ArtifactError as error:
        reason = str(error).replace(f"{folder}{os.sep}", "").removesuffix(": build it again with --force")
        raise ArtifactError(f"what arrived is not what was built ({reason})") from error


def _extract(path: Path, folder: Path) -> None:
    """The members of an archive as files; none is written that could not be one of ours."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
            if len(members) < len(archive.infolist()) or MANIFEST not in members:
                raise ArtifactError("what arrived is no artifact: it has no manifest, or a file twice")
            if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
                raise ArtifactError("what arrived is no artifact: it is compressed")
            known = _sizes(_text(archive, members.pop(MANIFEST)))
            for name, member in members.items():
                if name not in known and name not in ATTACHED:
                    raise ArtifactError(f"what arrived is no artifact: its manifest does not name {name[:100]!r}")
                if member.file_size > LARGEST_DOCUMENT if name not in known else member.file_size != known[name]:
                    raise ArtifactError(f"what arrived is not what was built ({name[:100]} is of another size)")
            archive.extractall(folder)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ArtifactError(f"what arrived was cut short, or is no artifact ({error})") from error


def _text(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> str:
    if member.file_size > LARGEST_DOCUMENT:
        raise ArtifactError("what arrived is no artifact: its manifest is too long")
    return archive.read(member).decode(errors="replace")


def _sizes(manifest: str) -> dict[str, int]:
    """The bytes of each file that a manifest names. Raises ArtifactError for a name that no artifact has."""
    try:
        named: dict[str, Any] = files.parsed(manifest)["files"]
        found = {name: int(facts["bytes"]) for name, facts in named.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError("what arrived is no artifact: its manifest cannot be read") from error
    for name in found:
        if PurePosixPath(name).is_absolute() or {"..", ""} & set(name.split("/")) or "\\" in name or name == MANIFEST:
            raise ArtifactError(f"what arrived is no artifact: it has a file {name[:100]!r}")
    return found
