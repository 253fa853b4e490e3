"""Engines and other processes: they work there, or say in one line why not; a child takes nothing from its parent."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

import mlpdeploy
from mlpdeploy.errors import ArtifactError
from tests.evidence.documents import whole
from tests.test_store import write


def test_a_pickled_engine_is_that_of_its_folder(tmp_path: Path) -> None:
    artifact = write(tmp_path / "artifact", **whole(engine="engine.bin"))
    engine = mlpdeploy.Engine(artifact, trusted=True)
    data = pickle.dumps(engine)
    again = pickle.loads(data)
    assert again.folder == engine.folder and again.manifest == engine.manifest and again._trusted
    write(artifact.folder, b"another", **whole(engine="engine.bin", created="later"))
    with pytest.raises(ArtifactError, match="was replaced"):
        pickle.loads(data)
    with pytest.raises(ArtifactError, match="was replaced"):
        engine(torch.zeros(1, 8))
