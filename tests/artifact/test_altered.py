"""An artifact whose files or manifest are not those that were written is refused, by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlpdeploy.artifact import store
from mlpdeploy.errors import ArtifactError
from mlpdeploy.system import files
from tests.artifact.test_store import write


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


ALTERED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "engine": (lambda folder: change(folder / "engine.bin"), "engine.bin was altered"),
    "model": (lambda folder: change(folder / "model.onnx"), "model.onnx was altered"),
    "longer": (lambda folder: (folder / "engine.bin").write_bytes(b"engine and more"), "engine.bin was altered"),
    "missing": (lambda folder: (folder / "engine.bin").unlink(), "engine.bin is missing"),
    "manifest missing": (lambda folder: (folder / "manifest.json").unlink(), "no artifact"),
    "manifest cut": (lambda folder: (folder / "manifest.json").write_text('{"schema"'), "cannot be read"),
    "manifest of bytes": (lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe"), "cannot be read"),
    "manifest of another kind": (
        lambda folder: (folder / "manifest.json").write_text("[]"),
        "no document",
    ),
}


@pytest.mark.parametrize("how", ALTERED)
def test_an_altered_artifact_is_refused_by_name(folder: Path, how: str) -> None:
    write(folder)
    alter, message = ALTERED[how]
    alter(folder)
    with pytest.raises(ArtifactError, match=message) as caught:
        store.open_artifact(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"schema": 99}, "has schema 99, this mlpdeploy reads 3"),
        ({"files": {}}, "does not name the model and the engine"),
        ({"engine": "other.plan"}, "does not name the model and the engine"),
        ({"files": "../.."}, "files is text, it must be an object"),
    ],
)
def test_a_manifest_that_lies(folder: Path, edit: dict[str, Any], message: str) -> None:
    write(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | edit))
    with pytest.raises(ArtifactError, match=message):
        store.open_artifact(folder)


def test_a_manifest_cannot_point_outside(folder: Path, tmp_path: Path) -> None:
    write(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    outside = tmp_path / "secret"
    outside.write_bytes(b"x")
    for name in (str(outside), "../../../../secret"):
        manifest["files"][name] = {"bytes": 1, "sha256": files.sha256(outside)}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(ArtifactError, match="outside the artifact"):
            store.open_artifact(folder)


def test_nothing_there(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="mlpdeploy build"):
        store.open_artifact(folder)
