"""Forms of checkpoints: averaged weights, formats of tensors, several files, what load hooks know, what is refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from mlpdeploy.artifact import cache
from mlpdeploy.errors import CheckpointError, InputError
from mlpdeploy.network import checkpoint
from mlpdeploy.selection import Selection


def weights(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return dict(nn.Linear(4, 3).state_dict())


def loaded(path: Path, network: nn.Module, ema: bool | None = None) -> dict[str, Tensor]:
    checkpoint.load(network, checkpoint.read(path, ema).state, str(path))
    return dict(network.state_dict())


def refusal(path: Path, ema: bool | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(path, ema)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_of_two_sets_of_weights_the_one_that_was_asked_for_is_taken_and_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"model": weights(1), "model_ema": weights(2)}, path)
    for ema, seed, other in ((None, 2, "--no-ema"), (True, 2, "--no-ema"), (False, 1, "--ema")):
        found = checkpoint.read(path, ema)
        assert torch.equal(found.state["weight"], weights(seed)["weight"])
        (note,) = found.notes
        assert note.startswith(f"weights of {'model' if seed == 1 else 'model_ema'!r} in a.pth") and other in note
    torch.save({"model": weights(1)}, path)
    assert checkpoint.read(path).notes == () and "holds no averaged weights: drop --ema" in refusal(path, True)
    torch.save({"ema": weights(1)}, path)
    assert checkpoint.read(path).notes == () and "drop --no-ema" in refusal(path, False)
    with pytest.raises(InputError, match="pass --checkpoint"):
        Selection("mixer_s32", ema=True)


AVERAGES: dict[str, Any] = {
    "ema_state_dict": lambda w: w,
    "ema_model_state_dict": lambda w: w,
    "teacher": lambda w: w,
    "averaged_model": lambda w: {"n_averaged": torch.tensor(3), **{f"module.{key}": one for key, one in w.items()}},
    "ema": lambda w: {"decay": 0.999, "shadow": w},
}


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_are_known_under_all_their_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.pth"
    for plain in ("model", "model_state_dict", "student", "network"):
        torch.save({plain: weights(1), name: AVERAGES[name](weights(2)), "epoch": 3}, path)
        assert torch.equal(checkpoint.read(path).state["weight"], weights(2)["weight"])
        assert checkpoint.read(path).notes and torch.equal(
            checkpoint.read(path, ema=False).state["weight"], weights(1)["weight"]
        )


def test_what_stands_beside_a_network_is_left_out_and_named(tmp_path: Path) -> None:
    inner = {f"net.{key}": one for key, one in weights(1).items()}
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {**inner, "loss.weight": torch.ones(7)}}, path)
    found = list(checkpoint.unprefixed(checkpoint.read(path).state))
    assert [sorted(one.state) for one in found][-1] == ["bias", "weight"]
    assert found[-1].notes == ("weights of 'net' in the checkpoint; left out: loss.weight",)
    both = {f"model.{key}": one for key, one in weights(1).items()}
    both |= {f"model_ema.module.{key}": one for key, one in weights(2).items()}
    for ema, seeds in ((None, [2, 1]), (True, [2, 1]), (False, [1, 2])):
        parts = [one.state for one in checkpoint.unprefixed(both, ema) if one.notes]
        assert all(
            torch.equal(part["weight"], weights(seed)["weight"]) for part, seed in zip(parts, seeds, strict=True)
        )


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool], ids=str)
def test_codes_are_no_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save({"weight": weights()["weight"].to(dtype), "bias": weights()["bias"]}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"weight holds .*, which are codes and no weights without their scales"):
        loaded(tmp_path / "a.pth", nn.Linear(4, 3))


def test_what_is_taken_for_a_checkpoint_is_called_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    for content, said in (
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"<html><body>404", "is a web page"),
    ):
        path.write_bytes(content)
        assert said in refusal(path)
    np.save(tmp_path / "b.npy", np.zeros(3))
    assert "is one array of NumPy" in refusal(tmp_path / "b.npy")
    exported = torch.export.export(nn.Linear(4, 3), (torch.zeros(2, 4),))
    torch.export.save(exported, tmp_path / "c.pt2")
    assert "is an archive without a state dict" in refusal(tmp_path / "c.pt2")


FORMATS: dict[str, Any] = {
    "COO": lambda w: w.to_sparse(),
    "CSR": lambda w: w.to_sparse_csr(),
    "quantised": lambda w: torch.quantize_per_tensor(w, 0.01, 0, torch.qint8),
    "float8": lambda w: w.to(torch.float8_e4m3fn),
}


@pytest.mark.filterwarnings("ignore")  # of PyTorch, that these formats are new or old
@pytest.mark.parametrize("form", FORMATS)
def test_formats_of_tensors_become_numbers(tmp_path: Path, form: str) -> None:
    given = weights()
    made = FORMATS[form](given["weight"])
    torch.save(given | {"weight": made}, tmp_path / "a.pth")
    found = loaded(tmp_path / "a.pth", nn.Linear(4, 3))["weight"]
    expected = made.dequantize() if made.is_quantized else made.to_dense() if form in ("COO", "CSR") else made.float()
    assert torch.equal(found, expected)


def test_tensors_without_numbers_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.empty(3, 4, device="meta"), "bias": torch.zeros(3)}, tmp_path / "a.pth")
    assert "meta device" in refusal(tmp_path / "a.pth")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(4, 4), nn.Linear(4, 4)
        self.outward.weight = self.inward.weight


def test_weights_that_two_modules_share_lie_in_safetensors_once(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = Tied()
    save_model(network, str(tmp_path / "a.safetensors"))
    found = loaded(tmp_path / "a.safetensors", Tied())
    assert all(torch.equal(found[key], value) for key, value in network.state_dict().items())
    save_file({"inward.bias": torch.zeros(4), "outward.bias": torch.zeros(4)}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="another network"):
        loaded(tmp_path / "b.safetensors", Tied())


def test_the_older_names_of_a_weight_that_is_normalised(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    now = network.state_dict()
    older = {
        "bias": now["bias"], "weight_g": now["parametrizations.weight.original0"],
        "weight_v": now["parametrizations.weight.original1"],
    }  # fmt: skip
    torch.save(older, tmp_path / "a.pth")
    found = loaded(tmp_path / "a.pth", nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)))
    assert all(torch.equal(found[key], value) for key, value in now.items())


@pytest.mark.parametrize("given", ["folder", "index"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_checkpoint_in_several_files(tmp_path: Path, given: str, kind: str) -> None:
    name, save = ("model", save_file) if kind == "safetensors" else ("pytorch_model", torch.save)
    parts = {key: f"{name}-0000{number}-of-00002.{kind}" for number, key in enumerate(weights(), 1)}
    for key, file in parts.items():
        save({key: weights()[key]}, tmp_path / file)
    index = tmp_path / f"{name}.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    path = tmp_path if given == "folder" else index
    found = loaded(path, nn.Linear(4, 3))
    assert all(torch.equal(found[key], value) for key, value in weights().items())
    before = cache.checkpoint_sha256(path)
    save({"bias": torch.ones(3)}, tmp_path / parts["bias"])
    assert cache.checkpoint_sha256(path) != before
    (tmp_path / parts["bias"]).unlink()
    assert "does not exist" in refusal(path)


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "b.index.json"])
def test_an_index_names_files_beside_it_only(tmp_path: Path, name: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"weight": name}}))
    assert "which is no file beside it" in refusal(index)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": 3}', "{", ""])
def test_an_index_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.index.json").write_text(content)
    assert "is no index" in refusal(tmp_path / "a.index.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path / "pipe.pth", Path("/dev/zero")):
        assert "is no regular file" in refusal(path)
        with pytest.raises(CheckpointError):
            cache.checkpoint_sha256(path)
    assert "does not exist" in refusal(tmp_path / ("a" * 300))


class Anything:
    def __reduce__(self) -> Any:
        return dict, ()


@pytest.mark.filterwarnings("ignore")  # of PyTorch, that TorchScript is old
def test_what_is_refused_on_purpose_is_not_called_broken(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(4, 3)), str(tmp_path / "a.pt"))
    assert "is a TorchScript archive, which is code" in refusal(tmp_path / "a.pt")
    for protocol in (2, 4, 5):
        (tmp_path / "b.pkl").write_bytes(pickle.dumps({"model": Anything(), "more": {1, 2}}, protocol=protocol))
        said = refusal(tmp_path / "b.pkl")
        assert "truncated" not in said and "download it again" not in said and "safetensors" in said


def test_keys_of_several_lines_stay_in_theirs(tmp_path: Path) -> None:
    torch.save({"weight\nerror: x": torch.zeros(3), "k" * 5000: torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        loaded(tmp_path / "a.pth", nn.Linear(4, 3))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3 and all(len(line) < 600 for line in lines)
