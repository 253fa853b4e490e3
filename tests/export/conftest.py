"""What tests of exported folders share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import mlpdeploy
from mlpdeploy.artifact import store
from mlpdeploy.artifact.store import Artifact
from tests.test_api import Net


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Artifact]:
    """A small network for ONNX Runtime, batch 1 to 8."""
    folder = tmp_path_factory.mktemp("artifact") / "net"
    with mlpdeploy.compile(
        Net(), torch.ones(2, 3, 16, 16), precision="fp32", backend="onnxruntime", batch="1:4:8"
    ) as one:
        yield store.open_artifact(one.save(folder))
