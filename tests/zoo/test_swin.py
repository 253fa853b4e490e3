"""Swin is timm's, in the authors' keys; a batch stays symbolic, and windows are those of the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor

import mlpdeploy
from mlpdeploy.network import factory, random_weights
from mlpdeploy.selection.choice import NetworkChoice
from mlpdeploy.zoo import swin
from mlpdeploy.zoo.recipe import recipes
from tests.graph.proof import fired
from tests.graph.proof import prove as prove_graph
from tests.zoo.official import official
from tests.zoo.proof import prove

VARIANTS = ("swin_t", "swin_t_c24", "swin_s", "swin_b", "swin_b_384", "swin_l", "swin_l_384")

BACKBONE = "swinchex_l_head3"
"""The published list of keys whose backbone is the authors' Swin-L, downsampling at the end of a stage."""


def tiny(**options: Any) -> SwinTransformer:
    given: dict[str, Any] = dict(img_size=32, patch_size=2, embed_dim=8, depths=(2, 1), num_heads=(2, 4), window_size=4)
    return SwinTransformer(**(given | dict(num_classes=5) | options))


def authors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's state dict in the authors' keys, with their buffers."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        stage = key.split(".")[1]
        if ".downsample." in key:
            key = key.replace(f"layers.{stage}.downsample", f"layers.{int(stage) - 1}.downsample")
        renamed[key.replace("head.fc.", "head.")] = tensor
        if key.endswith("qkv.weight"):
            renamed[key.replace("qkv.weight", "relative_position_index")] = torch.zeros(49, 49, dtype=torch.int64)
        if ".blocks.1.norm1.weight" in key:
            renamed[key.replace("norm1.weight", "attn_mask")] = torch.zeros(64, 49, 49)
    return renamed


def test_the_authors_keys_are_timms_after_reading() -> None:
    state = {key: tensor for key, tensor in official(BACKBONE).empty().items() if not key.startswith("heads")}
    read, options = swin.read(state)
    with torch.device("meta"):
        network = factory.make(recipes()["swin_l"], NetworkChoice("swin_l"))
    expected = network.state_dict()
    ours = {key: tuple(tensor.shape) for key, tensor in expected.items() if not key.startswith("head.")}
    assert {key: tuple(tensor.shape) for key, tensor in read.items()} == ours
    assert options == {}


@pytest.mark.parametrize("wrapper", ["model", None])
def test_a_checkpoint_loads_in_either_spelling(wrapper: str | None, tmp_path: Path) -> None:
    state = mlpdeploy.reference("swin_t", seed=3).state_dict()
    given = state if wrapper is None else {wrapper: authors(state)}
    torch.save(given, tmp_path / "swin.pth")
    network = mlpdeploy.reference("swin_t", checkpoint=tmp_path / "swin.pth")
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[key]), key


def test_rules_change_no_number_and_fire_everywhere() -> None:
    found = fired(prove_graph(tiny(), (3, 32, 32)))
    assert found["decompose_rolls"] == 2  # there and back, in the one displaced block
    assert found["pick_parts"] == 3


def test_every_parameter_matters() -> None:
    network = tiny().eval()
    random_weights.randomise(network, 0)
    loss: Tensor = network(torch.randn(2, 3, 32, 32)).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert not [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]


def test_recipes_are_of_the_paper() -> None:
    variants = [recipe for recipe in recipes().values() if recipe.family == "swin"]
    assert [recipe.name for recipe in variants] == list(VARIANTS)
    assert all(recipe.crop == (1.0 if recipe.name.endswith("_384") else 0.875) for recipe in variants)


@pytest.mark.large
@pytest.mark.parametrize("variant", VARIANTS)
def test_recipes_pass_the_ladder(variant: str) -> None:
    prove(variant)
