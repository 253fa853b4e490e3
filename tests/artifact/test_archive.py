"""An artifact as one file: the same again where it arrives, or refused, and what was there stays."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mlpdeploy.artifact import archive, store
from mlpdeploy.artifact.archive import pack, unpack
from mlpdeploy.errors import ArtifactError, InputError
from tests.artifact.test_store import names, write


@pytest.fixture
def packed(folder: Path, tmp_path: Path) -> Path:
    """An artifact with a verification, as a file."""
    artifact = write(folder)
    store.attach(artifact, store.VERIFICATION, "{}")
    return pack(artifact, tmp_path / "packed")


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """Where another artifact lies that must not be lost."""
    folder = tmp_path / "there" / "net" / "fp16" / "backend"
    write(folder, b"before")
    return folder


def refused(packed: Path, folder: Path, match: str) -> None:
    with pytest.raises(ArtifactError, match=match):
        unpack(packed, folder)
    assert (store.open_artifact(folder).folder / "engine.bin").read_bytes() == b"before"
    assert {name for name in names(folder.parent) if "draft" in name} == set()


def repacked(packed: Path, change: Callable[[dict[str, bytes]], None], how: int = zipfile.ZIP_STORED) -> Path:
    """The file, with other members."""
    with zipfile.ZipFile(packed) as read:
        members = {name: read.read(name) for name in read.namelist()}
    change(members)
    with zipfile.ZipFile(packed, "w", how) as written:
        for name, content in members.items():
            written.writestr(name, content)
    return packed


def test_what_arrives_is_the_same_artifact_with_what_was_attached(packed: Path, folder: Path, before: Path) -> None:
    unpack(packed, before)
    assert names(before) == names(folder)
    assert all((before / name).read_bytes() == (folder / name).read_bytes() for name in names(folder))
    assert store.open_artifact(before).manifest == store.open_artifact(folder).manifest


def test_the_same_artifact_is_the_same_bytes(packed: Path, tmp_path: Path) -> None:
    again = pack(unpack(packed, tmp_path / "again"), tmp_path / "second")
    assert again.read_bytes() == packed.read_bytes()


def test_nothing_that_does_not_belong_to_it_comes_along_and_no_link_is_followed(folder: Path, tmp_path: Path) -> None:
    artifact = write(folder)
    (folder / "mine.txt").write_text("mine")
    unpack(pack(artifact, tmp_path / "packed"), tmp_path / "copy")
    assert names(tmp_path / "copy") == {"model.onnx", "engine.bin", "report.md", "manifest.json"}
    (tmp_path / "secret").write_text("secret")
    (folder / store.VERIFICATION).symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactError, match="leads out of the artifact"):
        pack(artifact, tmp_path / "packed")


def test_a_file_cut_short_anywhere_is_refused(packed: Path, before: Path) -> None:
    content = packed.read_bytes()
    for length in (0, 1, 100, len(content) // 2, len(content) - 23, len(content) - 1):
        packed.write_bytes(content[:length])
        refused(packed, before, "cut short")


def test_an_altered_byte_is_refused_by_checksum_and_by_hash(packed: Path, before: Path) -> None:
    content = packed.read_bytes()
    packed.write_bytes(content.replace(b"engine", b"Engine", 2))
    refused(packed, before, "cut short|not what was built|no artifact")
    packed.write_bytes(content)
    refused(repacked(packed, lambda members: members.update({"engine.bin": b"angine"})), before, "engine.bin was alter")


def test_other_sizes_and_missing_files_are_refused(packed: Path, before: Path) -> None:
    refused(repacked(packed, lambda members: members.update({"engine.bin": b"longer" * 2})), before, "of another size")
    refused(repacked(packed, lambda members: members.pop("engine.bin") and None), before, "engine.bin is missing")


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "sub/../../evil", "mine.txt", "manifest.json/x"])
def test_a_file_that_the_manifest_does_not_name_is_refused(packed: Path, before: Path, name: str) -> None:
    refused(repacked(packed, lambda members: members.update({name: b"x"})), before, "does not name")


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "sub/../../evil", "a\\b", "a//b", "manifest.json"])
def test_a_name_that_no_artifact_has_is_refused(packed: Path, before: Path, name: str) -> None:
    def change(members: dict[str, bytes]) -> None:
        manifest = json.loads(members["manifest.json"])
        manifest["files"][name] = {"bytes": 1, "sha256": "0" * 64}
        members.update({"manifest.json": json.dumps(manifest).encode(), name: b"x"} if name != "manifest.json" else {})
        members["manifest.json"] = json.dumps(manifest).encode()

    refused(repacked(packed, change), before, "it has a file")


@pytest.mark.parametrize(
    "manifest", [b"", b"[]", b"{}", b'{"files": 1}', b'{"files": {"a": {}}}', b"\xff", b"[" * 9999]
)
def test_a_manifest_that_cannot_be_read_is_refused(packed: Path, before: Path, manifest: bytes) -> None:
    refused(repacked(packed, lambda members: members.update({"manifest.json": manifest})), before, "cannot be read")


def test_what_others_pack_is_refused(
    packed: Path, before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = packed.read_bytes()
    refused(repacked(packed, lambda members: None, zipfile.ZIP_DEFLATED), before, "compressed")
    packed.write_bytes(content)
    refused(repacked(packed, lambda members: members.pop("manifest.json") and None), before, "no manifest")
    packed.write_bytes(content)
    with zipfile.ZipFile(packed, "a") as twice, pytest.warns(UserWarning, match="Duplicate name"):
        twice.writestr("engine.bin", b"second")
    refused(packed, before, "a file twice")
    packed.write_bytes(content)
    monkeypatch.setattr(archive, "LARGEST_DOCUMENT", 10)
    refused(packed, before, "too long")
    (tmp_path / "text").write_text("no archive")
    refused(tmp_path / "text", before, "cut short, or is no artifact")


def test_what_is_no_artifact_is_not_replaced(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    with pytest.raises(InputError, match="exists and is no artifact"):
        unpack(packed, tmp_path / "mine")
    assert (tmp_path / "mine" / "file").read_text() == "mine"
