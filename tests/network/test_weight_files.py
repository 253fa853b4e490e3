"""Files of weights: the formats that are read, what is refused of the rest, and that nothing in one is ever run."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.network.test_checkpoint import loaded, refusal, state


class CfgNode(dict[str, Any]):
    """A configuration as Swin's training code saves it: a mapping with attributes of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(options)
        self.__dict__.update(__immutable__=True, __deprecated_keys__=set(), __renamed_keys__={})


def as_yacs(monkeypatch: pytest.MonkeyPatch, content: Any, path: Path) -> None:
    """Save with `CfgNode` under its name in yacs, which is not there when the file is read."""
    with monkeypatch.context() as patch:
        for name in ("yacs", "yacs.config"):
            patch.setitem(sys.modules, name, ModuleType(name))
        patch.setattr(sys.modules["yacs.config"], "CfgNode", CfgNode, raising=False)
        patch.setattr(CfgNode, "__module__", "yacs.config")
        torch.save(content, path)


def test_the_configuration_that_swins_training_code_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CfgNode(MODEL=CfgNode(TYPE="swin", DEPTHS=[2, 2], RESUME=None), EPOCHS=300)
    as_yacs(monkeypatch, {"model": state(), "config": config, "max_accuracy": 81.2}, tmp_path / "net.pth")
    found = loaded(tmp_path / "net.pth")
    assert all(torch.equal(found[key], value) for key, value in state().items())


def test_a_configuration_that_would_run_code_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "was run"
    as_yacs(monkeypatch, {"model": state(), "config": CfgNode(MODEL=Hostile(marker))}, tmp_path / "net.pth")
    assert "refused, nothing of it was run" in refusal(tmp_path / "net.pth")
    assert not marker.exists()


@pytest.mark.parametrize("half", [False, True])
def test_safetensors(tmp_path: Path, half: bool) -> None:
    weights = {k: v.half() if half and v.is_floating_point() else v for k, v in state().items()}
    save_file(weights, tmp_path / "net.safetensors")
    found = loaded(tmp_path / "net.safetensors")
    assert all(torch.equal(found[key], value.to(found[key].dtype)) for key, value in weights.items())


def test_legacy_format_of_torch(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "net.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(loaded(tmp_path / "net.pth")["head.weight"], state()["head.weight"])


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "named safetensors"])
def test_a_pickle_that_would_run_code_does_not(tmp_path: Path, form: str) -> None:
    marker, path = tmp_path / "was run", tmp_path / "net.pth"
    content = {"state_dict": state(), "extra": Hostile(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    if form == "named safetensors":
        path = path.rename(path.with_suffix(".safetensors"))
    message = refusal(path)
    assert "\n" not in message
    assert not marker.exists()
    if form in ("zip", "legacy"):
        assert "refused, nothing of it was run: it wants to run" in message


def test_arrays_of_numpy(tmp_path: Path) -> None:
    np.savez(tmp_path / "net.npz", **{key: value.numpy() for key, value in state().items()})  # type: ignore[arg-type]
    read = loaded(tmp_path / "net.npz")
    assert read.keys() == state().keys() and all(torch.equal(read[key], value) for key, value in state().items())


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "was run"
    hostile = np.empty(1, dtype=object)
    hostile[0] = Hostile(marker)
    np.savez(tmp_path / "net.npz", weights=hostile)
    assert "\n" not in refusal(tmp_path / "net.npz") and not marker.exists()


def test_missing_empty_and_folder(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.pth")
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "empty.pth").touch()
    assert "is empty" in refusal(tmp_path / "empty.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "npz"])
@pytest.mark.parametrize("kept", [1, 7, 40, 1000, -1])
def test_truncated(tmp_path: Path, suffix: str, kept: int) -> None:
    path = tmp_path / f"net.{suffix}"
    if suffix == "pth":
        torch.save(state(), path)
    elif suffix == "npz":
        np.savez(path, **{key: value.numpy() for key, value in state().items()})  # type: ignore[arg-type]
    else:
        save_file(state(), path)
    path.write_bytes(path.read_bytes()[:kept])
    assert "\n" not in refusal(path)


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"\x80\x04.", b"\0" * 4096, b"PK\x03\x04 broken"])
def test_files_that_are_no_checkpoints(tmp_path: Path, content: bytes) -> None:
    for suffix in ("pth", "safetensors", "npz"):
        (tmp_path / f"net.{suffix}").write_bytes(content)
        assert "\n" not in refusal(tmp_path / f"net.{suffix}")
