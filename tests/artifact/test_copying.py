"""A copy of an artifact is whole, or says that the artifact was replaced or altered."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlpdeploy.artifact import store
from mlpdeploy.artifact.copying import copied_from, copy
from mlpdeploy.errors import ArtifactError
from tests.artifact.test_altered import change
from tests.artifact.test_store import WRITER, names, write
from tests.conftest import REPOSITORY


@pytest.mark.slow
def test_copies_made_while_it_is_built_again_and_again_are_whole_or_say_so(folder: Path, tmp_path: Path) -> None:
    write(folder)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), "exchange", "1"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
    )
    try:
        while "generation" not in store.read_manifest(folder):
            assert writer.poll() is None
            time.sleep(0.01)
        whole, replaced = set(), 0
        for number in range(300):
            target = tmp_path / "copies" / f"{number % 2}"
            try:
                found = copy(store.open_artifact(folder), target)
            except ArtifactError as error:
                assert "was replaced since it was loaded" in str(error)
                replaced += 1
                continue
            generation = found.manifest["generation"]
            assert store.open_artifact(target).manifest == found.manifest
            for name in ("model.onnx", "engine.bin", "more.bin"):
                assert (target / name).read_bytes() == str(generation).encode() * 20000
            whole.add(generation)
        assert len(whole) > 1 and replaced < 300
    finally:
        writer.kill()
        writer.wait()
    assert copied_from(folder, tmp_path / "last").manifest == store.open_artifact(folder).manifest


def test_a_copy_takes_what_belongs_to_the_artifact_and_follows_no_link(folder: Path, tmp_path: Path) -> None:
    artifact = write(folder)
    store.attach(artifact, store.VERIFICATION, "{}")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key").write_text("secret")
    (folder / "sub").symlink_to(tmp_path / "secrets")
    os.mkfifo(folder / "pipe")
    copied = copy(artifact, tmp_path / "copy")
    assert names(copied.folder) == {"model.onnx", "engine.bin", "report.md", "manifest.json", "verification.json"}
    (folder / store.BENCH).symlink_to(tmp_path / "secrets" / "key")
    with pytest.raises(ArtifactError, match="a link that leads out of the artifact"):
        copy(artifact, tmp_path / "copy")
    assert store.open_artifact(tmp_path / "copy") == copied


def test_a_copy_of_what_was_replaced_or_altered_says_so(folder: Path, tmp_path: Path) -> None:
    before = write(folder)
    change(folder / "engine.bin")
    with pytest.raises(ArtifactError, match=r"engine\.bin was altered"):
        copy(before, tmp_path / "copy")
    write(folder, b"two")
    for target in (tmp_path / "copy", folder):
        with pytest.raises(ArtifactError, match="was replaced since it was loaded: load it again"):
            copy(before, target)
    assert not (tmp_path / "copy").exists()
