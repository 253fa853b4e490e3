"""Every published checkpoint has a recipe whose network takes exactly its keys."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from mlpdeploy import reference
from mlpdeploy.errors import CheckpointError
from mlpdeploy.network import checkpoint, factory
from mlpdeploy.selection.choice import NetworkChoice
from mlpdeploy.zoo import recipe as recipes
from tests.zoo.official import Official, names, official

OFFICIAL = [official(name) for name in names()]
KNOWN = [variant for variant in OFFICIAL if variant.recipe in recipes.recipes()]


def network_for(variant: Official) -> tuple[dict[str, torch.Tensor], torch.nn.Module]:
    """The variant's state dict in our keys, and its network, neither with values."""
    recipe = recipes.recipes()[variant.recipe]
    state, options = checkpoint.translate(variant.empty(), recipe.checkpoint)
    with torch.device("meta"):
        network = factory.make(recipe, NetworkChoice(recipe.name), options)
    return state, network


@pytest.mark.parametrize("variant", KNOWN, ids=lambda variant: variant.name)
def test_keys_shapes_dtypes_and_parameters_are_the_authors(variant: Official) -> None:
    state, network = network_for(variant)
    ours = {key: (tuple(value.shape), value.dtype) for key, value in network.state_dict().items()}
    assert ours == {key: (tuple(value.shape), value.dtype) for key, value in state.items()}
    assert sum(parameter.numel() for parameter in network.parameters()) == variant.parameters


def smallest() -> list[recipes.Recipe]:
    """Of every family that classifies, the recipe with the fewest parameters."""
    found: dict[str, recipes.Recipe] = {}
    for recipe in sorted(recipes.recipes().values(), key=lambda recipe: -(recipe.parameters or 0)):
        if recipe.num_classes:
            found[recipe.family] = recipe
    return list(found.values())


@pytest.mark.parametrize("recipe", smallest(), ids=lambda recipe: recipe.name)
def test_a_checkpoint_decides_the_number_of_classes(recipe: recipes.Recipe) -> None:
    other = recipe.num_classes + 2
    with torch.device("meta"):
        made = [factory.make(recipe, NetworkChoice(recipe.name, num_classes=classes)) for classes in (None, other)]
    ours, theirs = (network.state_dict() for network in made)
    _, options = checkpoint.translate(theirs, recipe.checkpoint)
    told = options.get("num_classes")
    assert (checkpoint.other_classes(ours, theirs) if told is None else told) == other


def test_a_checkpoint_for_another_image_size_is_named_as_such(tmp_path: Path) -> None:
    torch.save(reference("mixer_s32").state_dict(), tmp_path / "mixer.pth")
    with pytest.raises(CheckpointError, match="do not fit image size 256: drop --image-size"):
        reference("mixer_s32", tmp_path / "mixer.pth", image_size=256)


def test_weights_that_are_not_finite_are_no_sibling(tmp_path: Path) -> None:
    weights = dict(reference("metaformer_id_s12").state_dict())
    weights["norm.bias"] = weights["norm.bias"] * torch.nan
    torch.save(weights, tmp_path / "id.pth")
    with pytest.raises(CheckpointError, match=r"norm\.bias holds NaN or infinite values"):
        reference("metaformer_id_s12", tmp_path / "id.pth")


def test_every_published_checkpoint_has_a_recipe() -> None:
    assert {variant.recipe for variant in OFFICIAL} <= recipes.recipes().keys()


def forms() -> dict[tuple[object, ...], list[str]]:
    """The recipes by what their checkpoints hold: keys, shapes and dtypes."""
    sizes = Counter(recipe.parameters for recipe in recipes.recipes().values())
    found: dict[tuple[object, ...], list[str]] = {}
    for recipe in (recipe for recipe in recipes.recipes().values() if sizes[recipe.parameters] > 1):
        with torch.device("meta"):
            made = factory.make(recipe, NetworkChoice(recipe.name))
        form = tuple(sorted((key, tuple(one.shape), str(one.dtype)) for key, one in made.state_dict().items()))
        found.setdefault(form, []).append(recipe.name)
    return found


def test_recipes_that_no_checkpoint_tells_apart_name_each_other() -> None:
    alike = {name: {*names} - {name} for names in forms().values() for name in names}
    assert {name: set(recipe.alike) for name, recipe in recipes.recipes().items() if recipe.alike} == {
        name: others for name, others in alike.items() if others
    }
