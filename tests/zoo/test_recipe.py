"""Recipes, the networks that they stand for, and their weights: fetched, or random."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import mlpdeploy
from mlpdeploy.network import factory
from mlpdeploy.network.finding import find
from mlpdeploy.network.source import complete, reference
from mlpdeploy.selection.choice import NetworkChoice
from mlpdeploy.zoo.recipe import canonical, recipes

PROMISED = (
    "vip_s14", "vip_s7", "vip_m7", "vip_l7", "mixer_s32", "mixer_s16", "mixer_b16", "resmlp_12", "resmlp_24",
    "resmlp_36", "gmlp_s16", "gmixer_24", "vit_small_patch16_224",
)  # fmt: skip


def test_every_promised_recipe_is_there() -> None:
    assert set(PROMISED) <= recipes().keys()
    assert canonical("vip_s") == "vip_s7"


def test_names_and_aliases_are_unique() -> None:
    names = [*recipes(), *(alias for recipe in recipes().values() for alias in recipe.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", PROMISED)
def test_stored_facts_are_those_of_the_network(name: str) -> None:
    recipe = recipes()[name]
    with torch.device("meta"):
        network = factory.make(recipe, NetworkChoice(recipe.name)).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == recipe.parameters
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        logits = network(torch.zeros(1, *recipe.input_shape, device="meta"))
    assert logits.shape == (1, recipe.num_classes)
    assert recipe.gmacs == pytest.approx(counter.get_total_flops() / 2e9, abs=5e-4)
    config = getattr(network, "pretrained_cfg", None)
    if config is not None:
        assert (recipe.mean, recipe.std, recipe.crop) == (config["mean"], config["std"], config["crop_pct"])
        assert recipe.interpolation == config["interpolation"]


@pytest.mark.parametrize("name", PROMISED)
def test_every_precision_has_a_budget_and_lower_ones_allow_more(name: str) -> None:
    budgets = recipes()[name].budgets
    allowed = [budgets[precision].max_relative_error for precision in ("fp32", "fp16", "bf16")]
    assert allowed == sorted(allowed)
    assert set(recipes()[name].precisions) <= budgets.keys()
    assert all(budget.min_top1_agreement >= 0.9 for budget in budgets.values())


def test_any_timm_model_is_a_network() -> None:
    recipe = find("timm:resnet18")
    network = reference("timm:resnet18", num_classes=7, image_size=64)
    recipe = complete(recipe, network, image_size=64, num_classes=7)
    assert (recipe.input_shape, recipe.num_classes) == ((3, 64, 64), 7)
    logits = network(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 7) and bool(logits.isfinite().all()) and bool(logits.std() > 0)


def test_random_weights_depend_on_the_seed_only() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = reference("mixer_s32", seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = reference("mixer_s32", seed=1).state_dict(), reference("mixer_s32", seed=2).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert all(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", ["mixer_s32", "resmlp_36", "gmlp_s16", "gmixer_24", "vip_s14"])
def test_random_weights_leave_no_branch_dead_and_nothing_explodes(name: str) -> None:
    network = reference(name, seed=0)
    constant = [key for key, value in network.state_dict().items() if value.numel() > 1 and value.min() == value.max()]
    assert not constant
    largest: list[float] = []
    for module in network.modules():
        module.register_forward_hook(lambda _, __, out: largest.append(float(out.abs().max())))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        logits = network(torch.randn(2, 3, 224, 224, generator=generator))
    assert max(largest) < 100  # FP16 ends at 65504
    assert logits.std() > 0.02
    assert (logits[0] - logits[1]).std() > 0.05 * logits.std()  # the image matters, not only the biases


def test_batchnorm_statistics_are_drawn_too() -> None:
    network = reference("timm:resnet18")
    norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.running_mean.std() > 0 and norm.running_var.std() > 0.1


@pytest.mark.parametrize(("gelu", "approximate"), [("erf", "none"), ("tanh", "tanh")])
def test_recipe_chooses_the_gelu(gelu: str, approximate: str) -> None:
    recipe = replace(recipes()["mixer_s32"], gelu=gelu)  # type: ignore[arg-type]
    network = factory.make(recipe, NetworkChoice(recipe.name))
    found = {module.approximate for module in network.modules() if isinstance(module, nn.GELU)}
    assert found == {approximate}


def test_reference_is_the_packages_own() -> None:
    assert mlpdeploy.reference is reference
    network = mlpdeploy.reference("mixer_s32", num_classes=10, image_size=64)
    assert network(torch.randn(1, 3, 64, 64)).shape == (1, 10)
    assert not any(parameter.requires_grad for parameter in network.parameters())
