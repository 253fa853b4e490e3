"""Engines whose folder holds another engine by now."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mlpdeploy
from mlpdeploy import Engine
from mlpdeploy.artifact import store
from mlpdeploy.errors import ArtifactError
from tests.test_api import Net, images


def built(out: Path, bias: float) -> Engine:
    """A network of one name, with weights of its own."""
    network = Net()
    torch.nn.init.constant_(network.head.bias, bias)
    return mlpdeploy.compile(network, images(1), precision="fp32", backend="onnxruntime", batch="1:2:4", out=out)


@pytest.mark.slow
def test_an_engine_whose_folder_was_built_again_goes_on_as_it_was_or_says_so(tmp_path: Path) -> None:
    loaded = built(tmp_path, 1.0)
    before = loaded(images(2))
    lazy = mlpdeploy.load(loaded.folder)
    second = built(tmp_path, 2.0)
    assert second.folder == loaded.folder and not torch.equal(second(images(2)), before)
    assert torch.equal(loaded(images(2)), before)
    report = (second.folder / store.REPORT).read_bytes()
    uses = (
        lambda: lazy(images(2)), loaded.report, lazy.report, loaded.verify, lambda: lazy.verify(Net()), loaded.bench,
        lambda: loaded.save(tmp_path / "saved"), lambda: lazy.save(lazy.folder),
    )  # fmt: skip
    for use in uses:
        with pytest.raises(ArtifactError, match="was replaced since it was loaded: load it again"):
            use()
    assert (second.folder / store.REPORT).read_bytes() == report and not (tmp_path / "saved").exists()
    loaded.close()
    with pytest.raises(ArtifactError, match="was replaced since it was loaded"):
        loaded(images(2))
    assert second.verify().passed and torch.equal(mlpdeploy.load(second.folder)(images(2)), second(images(2)))
