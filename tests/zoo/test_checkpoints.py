"""Every published checkpoint has a recipe whose network takes exactly its keys."""

from __future__ import annotations

import pytest
import torch

from mlpdeploy import checkpoint, factory
from mlpdeploy import recipe as recipes
from tests.zoo.official import Official, names, official

OFFICIAL = [official(name) for name in names()]
KNOWN = [variant for variant in OFFICIAL if variant.recipe in recipes.recipes()]


def network_for(variant: Official) -> tuple[dict[str, torch.Tensor], torch.nn.Module]:
    """The variant's state dict in our keys, and its network, neither with values."""
    recipe = recipes.recipes()[variant.recipe]
    state, options = checkpoint.translate(variant.empty(), recipe.checkpoint)
    with torch.device("meta"):
        network = factory.make(recipe, 0, image_size=None, num_classes=None, pretrained=False, options=options)
    return state, network


@pytest.mark.parametrize("variant", KNOWN, ids=lambda variant: variant.name)
def test_keys_shapes_dtypes_and_parameters_are_the_authors(variant: Official) -> None:
    state, network = network_for(variant)
    ours = {key: (tuple(value.shape), value.dtype) for key, value in network.state_dict().items()}
    assert ours == {key: (tuple(value.shape), value.dtype) for key, value in state.items()}
    assert sum(parameter.numel() for parameter in network.parameters()) == variant.parameters


def test_every_published_checkpoint_has_a_recipe() -> None:
    assert {variant.recipe for variant in OFFICIAL} <= recipes.recipes().keys()
