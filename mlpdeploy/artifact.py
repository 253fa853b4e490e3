"""Artifacts as they are read: which files they have, and what each must be. See `store` for how they are written.

Reading trusts nothing: every file is a regular one that lies inside the artifact, every document holds what `schema`
says, and nothing of either is run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy import documents
from mlpdeploy.errors import ArtifactError
from mlpdeploy.files import opened, sha256
from mlpdeploy.schema import Graph, Manifest
from mlpdeploy.schema_found import Verification

if TYPE_CHECKING:
    import onnx

SCHEMA = 2
MODEL, GRAPH, MANIFEST = "model.onnx", "graph.json", "manifest.json"
VERIFICATION, BENCH, REPORT, PAGE = "verification.json", "bench.json", "report.md", "report.html"
QUANTISATION, ROWS, CURVE = "quantisation.json", "rows.npz", "curve.svg"
"""Ranges of an INT8 engine: with them `verify` makes the same graph again without the calibration's data."""

ATTACHED: dict[str, Any] = {VERIFICATION: Verification, BENCH: None, REPORT: None, PAGE: None}
"""What is added to an artifact later, and the kinds of those that are documents."""


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


def checked(path: Path) -> Artifact:
    """The artifact at a folder, or at a file in it. Raises ArtifactError as `store.open_artifact` does."""
    try:
        folder = path.parent if path.is_file() else path
        manifest = read_manifest(folder)
        problem = _damage(folder, manifest)
        # A build may have replaced the artifact since its manifest was read: then the new one counts.
        while problem is not None and (again := read_manifest(folder)) != manifest:
            manifest, problem = again, _damage(folder, again)
    except OSError as error:
        reason = error.strerror or error
        raise ArtifactError(f"{path} cannot be read ({reason}): give an artifact that this user can read") from error
    if problem is not None:
        raise ArtifactError(f"{problem}: build it again with --force")
    return Artifact(folder, manifest)


def attached(artifact: Artifact, name: str) -> dict[str, Any] | None:
    """A JSON document beside the engine; None where there is none. Raises ArtifactError where it cannot be used."""
    path = artifact.folder / name
    if not leads_inside(path, artifact.folder):
        raise ArtifactError(f"{path} is a link that leads out of the artifact: remove it")
    return documents.read(path, {GRAPH: Graph, **ATTACHED}.get(name))


def read_model(path: Path) -> onnx.ModelProto:
    """The ONNX file at a path. Raises ArtifactError where it is none, or wants to read numbers from other files."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        with opened(path) as file:
            model = onnx.load_model_from_string(file.read())
    except (OSError, DecodeError) as error:
        raise ArtifactError(f"{path} cannot be read as ONNX ({error}): build it again with --force") from error
    try:
        onnx.external_data_helper.convert_model_from_external_data(model)
    except ValueError as error:
        raise ArtifactError(f"{path} keeps numbers in other files, which no build of mlpdeploy does") from error
    return model


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest alone, of which anything may be missing. Raises ArtifactError where it is none of this version."""
    path, again = folder / MANIFEST, "build it again with --force"
    if not leads_inside(path, folder):
        raise ArtifactError(f"{path} is a link that leads out of the artifact: remove it")
    manifest = documents.load(path, again)
    if manifest is None:
        raise ArtifactError(f"there is no artifact at {folder}: run `mlpdeploy build` first")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ArtifactError(f"{path} is no manifest of mlpdeploy: {again}")
    if manifest.get("schema") != SCHEMA:
        raise ArtifactError(
            f"{path} has schema {manifest.get('schema')}, this mlpdeploy reads {SCHEMA}: build it again with --force"
        )
    if (problem := documents.wrong(manifest, Manifest, partly=True)) is not None:
        raise ArtifactError(f"{path} is damaged or of another version ({problem}): {again}")
    return manifest


def _damage(folder: Path, manifest: dict[str, Any]) -> str | None:
    """Which file is not the one that the manifest names, or None. Raises OSError where one cannot be read."""
    named = manifest["files"]
    if MODEL not in named or not any(f == manifest.get("engine") or _inside(f, manifest) for f in named):
        return f"{folder / MANIFEST} does not name the model and the engine"
    for name, facts in named.items():
        path = folder / name
        if not leads_inside(path, folder):
            return f"{folder / MANIFEST} names {name}, outside the artifact"
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != facts["bytes"] or sha256(path) != facts["sha256"]:
            return f"{path} was altered after it was built"
    return None


def _inside(name: str, manifest: dict[str, Any]) -> bool:
    return name.startswith(f"{manifest.get('engine')}/")


def leads_inside(path: Path, folder: Path) -> bool:
    """Whether a path, its links followed, is in a folder."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def require_same(artifact: Artifact) -> None:
    """Raises ArtifactError where another engine lies in an artifact's folder than when it was opened."""
    if read_manifest(artifact.folder)["files"] != artifact.manifest["files"]:
        raise ArtifactError(
            f"{artifact.folder} was replaced since it was loaded: load it again, and it is the engine that is there now"
        )
