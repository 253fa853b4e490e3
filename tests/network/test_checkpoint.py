"""Checkpoints: whose weights are found and loaded, and which line names what does not fit."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mlpdeploy.errors import CheckpointError
from mlpdeploy.network import checkpoint
from mlpdeploy.network.source import reference, source_of
from mlpdeploy.selection.choice import NetworkChoice
from tests.zoo.official import official


class Net(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.body = nn.ModuleList(nn.Linear(4, 4) for _ in range(12))
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, classes)


def state(classes: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    drawn = {
        key: torch.randn(value.shape, generator=generator) if value.is_floating_point() else value + 7
        for key, value in Net(classes).state_dict().items()
    }
    return drawn


def load(network: nn.Module, path: Path) -> None:
    weights = checkpoint.read(path).state
    checkpoint.load(network, weights, str(path))


def loaded(path: Path) -> dict[str, Tensor]:
    network = Net()
    load(network, path)
    return dict(network.state_dict())


def refusal(path: Path, network: nn.Module | None = None) -> str:
    network = network or Net()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load(network, path)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    message = str(caught.value)
    assert message.startswith(str(path))
    return message


def changed(**weights: Tensor) -> dict[str, Tensor]:
    return state() | {key.replace("__", "."): value for key, value in weights.items()}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"norm__weight": torch.tensor([1, 2j, 3, 4])},
            "norm.weight holds complex numbers, of which the network would",
        ),
        ({"norm__weight": torch.tensor([1.0, 1e300, 3, 4], dtype=torch.float64)}, "numbers beyond float32's"),
        ({"norm__weight": torch.tensor([1.0, torch.inf, 3, 4])}, "norm.weight holds NaN or infinite values"),
        ({"norm__running_var": torch.tensor([1.0, torch.inf, 3, 4])}, "norm.running_var holds NaN or infinite values"),
        ({"norm__num_batches_tracked": torch.tensor(1.5)}, "norm.num_batches_tracked holds numbers that are no int64"),
    ],
)
def test_a_weight_that_would_be_changed_while_it_loads_is_refused(
    tmp_path: Path, weights: dict[str, Tensor], message: str
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(changed(**weights), path)
    assert message in refusal(path)


class Masked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))


def test_a_mask_that_the_network_makes_infinite_itself_loads(tmp_path: Path) -> None:
    path, network = tmp_path / "weights.pth", Masked()
    torch.save(state() | {"mask": torch.full((3, 3), -torch.inf).triu(1)}, path)
    load(network, path)
    torch.save(state() | {"mask": torch.full((3, 3), -torch.inf).tril(-1)}, path)
    assert "mask holds NaN or infinite values" in refusal(path, Masked())
    torch.save(state() | {"mask": torch.full((3, 3), torch.nan).triu(1)}, path)
    assert "mask holds NaN or infinite values" in refusal(path, Masked())


def test_a_float32_checkpoint_keeps_its_numbers_in_a_network_that_was_made_in_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_example.py").write_text("from torch import nn\n\ndef net():\n    return nn.Linear(4, 4).half()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    weights = {"weight": torch.randn(4, 4) + 1e5, "bias": torch.full((4,), 1 / 3)}
    save_file(weights, tmp_path / "weights.safetensors")
    network = reference("half_example:net", "weights.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


WRAPPED = {
    "flat": lambda weights: weights,
    "model": lambda weights: {"model": weights, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
    "state_dict": lambda weights: {"state_dict": weights, "optimizer": {"state": {}}, "arch": "net"},
    "module": lambda weights: {"model": {f"module.{key}": value for key, value in weights.items()}},
    "compiled": lambda weights: {f"_orig_mod.{key}": value for key, value in weights.items()},
    "ema": lambda weights: {"state_dict": {k: v * 0 for k, v in weights.items()}, "state_dict_ema": weights},
    "compiled and parallel": lambda weights: {f"_orig_mod.module.{key}": value for key, value in weights.items()},
    "parallel and compiled": lambda weights: {f"module._orig_mod.{key}": value for key, value in weights.items()},
    "ema beside model": lambda weights: {"model": {k: v * 0 for k, v in weights.items()}, "ema": weights},
    "model_ema": lambda weights: {"model_ema": weights, "model": {k: v * 0 for k, v in weights.items()}},
}


WRAPPED |= {
    name: lambda weights, name=name: {name: weights, "step": 7} for name in ("model_state_dict", "params", "student")
}
WRAPPED |= {
    prefix: lambda weights, prefix=prefix: {"state_dict": {f"{prefix}{key}": value for key, value in weights.items()}}
    for prefix in ("model.", "net.", "backbone.", "encoder.model.", "module.student.")
}
WRAPPED |= {
    f"{part} in the middle": lambda weights, part=part: {
        key.replace("body.", f"body.{part}."): value for key, value in weights.items()
    }
    for part in ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
}
OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"params": [0]}]}
WRAPPED |= {
    f"{name} beside an optimizer": lambda weights, name=name: {name: weights, "optimizer": OPTIMIZER, "epoch": 3}
    for name in ("module", "weights", "generator", "model_state", "anything")
}
WRAPPED |= {"a state within a state": lambda weights: {"state": {"model": weights, "loss": 0.1}, "epoch": 3}}
WRAPPED |= {
    "averaged by torch": lambda weights: {
        "n_averaged": torch.tensor(3),
        **{f"module.{key}": value for key, value in weights.items()},
    },
    "params_ema": lambda weights: {"params": {k: v * 0 for k, v in weights.items()}, "params_ema": weights},
    "an average with its decay": lambda weights: {"ema": {"module": weights, "decay": 0.99}},
    "without what BatchNorm counts": lambda weights: {k: v for k, v in weights.items() if "tracked" not in k},
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers_of_training_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrapper: str) -> None:
    module = ModuleType("wrapped_example")
    monkeypatch.setattr(module, "Net", Net, raising=False)
    monkeypatch.setitem(sys.modules, "wrapped_example", module)
    torch.save(WRAPPED[wrapper](state()), tmp_path / "net.pth")
    source = source_of(NetworkChoice("wrapped_example:Net", checkpoint=tmp_path / "net.pth", input_shape=(4,)))
    found, known = source.network.state_dict(), state()
    assert all(torch.equal(found[key], known[key]) for key in found if "tracked" not in key)


@pytest.mark.parametrize("content", [[1, 2], {"model": {}}, {}, {"a": "text"}, {3: torch.zeros(1)}, torch.zeros(3)])
def test_contents_that_are_no_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "net.pth")
    assert "save model.state_dict()" in refusal(tmp_path / "net.pth")


def test_wrong_keys_and_shapes_are_listed(tmp_path: Path) -> None:
    weights = {f"{'other.' if 'body' in key else ''}{key}": value for key, value in state().items()}
    weights["norm.weight"] = torch.zeros(7)
    torch.save(weights, tmp_path / "net.pth")
    lines = refusal(tmp_path / "net.pth").splitlines()
    assert "another network" in lines[0]
    assert lines[1].startswith("  24 missing: body.0.weight, body.0.bias") and lines[1].endswith(" and 14 more")
    assert lines[1].count(",") == 9
    assert lines[2].startswith("  24 unknown: other.body.0.weight") and lines[2].endswith(" and 14 more")
    assert lines[3] == "  1 of another shape: norm.weight is 7, not 4"


def test_another_number_of_classes_says_which(tmp_path: Path) -> None:
    torch.save(state(classes=9), tmp_path / "net.pth")
    assert refusal(tmp_path / "net.pth").endswith("pass --num-classes 9")


def test_another_width_is_not_taken_for_another_number_of_classes(tmp_path: Path) -> None:
    weights = state()
    weights["head.weight"] = torch.zeros(5, 6)
    torch.save(weights, tmp_path / "net.pth")
    assert "head.weight is 5x6, not 5x4" in refusal(tmp_path / "net.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    weights = state()
    weights["body.3.weight"][1, 2] = value
    torch.save(weights, tmp_path / "net.pth")
    assert "body.3.weight holds NaN or infinite values" in refusal(tmp_path / "net.pth")


def test_resmlp_loads_in_the_authors_format_and_in_timms(tmp_path: Path) -> None:
    theirs = official("resmlp_12").random()
    torch.save(theirs, tmp_path / "authors.pth")
    network = reference("resmlp_12", tmp_path / "authors.pth")
    found = network.state_dict()
    assert torch.equal(found["blocks.3.linear_tokens.weight"], theirs["blocks.3.attn.weight"])
    assert torch.equal(found["blocks.3.mlp_channels.fc1.bias"], theirs["blocks.3.mlp.fc1.bias"])
    assert torch.equal(found["blocks.11.ls2"], theirs["blocks.11.gamma_2"])
    assert torch.equal(found["norm.alpha"], theirs["norm.alpha"].reshape(1, 1, -1))
    assert torch.equal(found["stem.proj.weight"], theirs["patch_embed.proj.weight"])
    save_file(found, tmp_path / "timm.safetensors")
    again = reference("resmlp_12", tmp_path / "timm.safetensors").state_dict()
    assert all(torch.equal(again[key], value) for key, value in found.items())


def test_vip_loads_the_authors_keys_unchanged(tmp_path: Path) -> None:
    theirs = official("vip_s7").random()
    torch.save({"state_dict": theirs, "arch": "vip_s7"}, tmp_path / "vip.pth.tar")
    found = reference("vip_s", tmp_path / "vip.pth.tar").state_dict()
    assert found.keys() == theirs.keys()
    assert all(torch.equal(found[key], value) for key, value in theirs.items())


def test_a_checkpoint_of_a_sibling_is_named(tmp_path: Path) -> None:
    save_file(official("vip_s14").random(), tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"is no checkpoint of vip_s7, this looks like vip_s14: pass that name"):
        reference("vip_s7", tmp_path / "weights.safetensors")


def test_a_recipes_network_gets_the_checkpoints_number_of_classes(tmp_path: Path) -> None:
    theirs = official("resmlp_12").random()
    theirs |= {"head.weight": torch.ones(7, 384), "head.bias": torch.zeros(7)}
    save_file(theirs, tmp_path / "tuned.safetensors")
    source = source_of(NetworkChoice("resmlp_12", checkpoint=tmp_path / "tuned.safetensors"))
    assert source.recipe.num_classes == 7 and source.notes == ("7 classes, as in the checkpoint",)
    assert source.network.head.weight.shape == (7, 384)
    with pytest.raises(CheckpointError, match="pass --num-classes 7"):
        reference("resmlp_12", tmp_path / "tuned.safetensors", num_classes=5)
