"""The network that a recipe and a choice ask for, made with the weights of a checkpoint, or told what it is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy.errors import CheckpointError, InputError
from mlpdeploy.selection.choice import NetworkChoice
from mlpdeploy.zoo.recipe import Recipe, kind, recipes

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Needed:
    """A recipe and what was chosen of it, without what its network has anyway."""

    recipe: Recipe
    choice: NetworkChoice

    def make(self, options: Mapping[str, Any]) -> nn.Module:
        """The network, untrained unless pretrained."""
        from mlpdeploy.network import factory

        return factory.make(self.recipe, self.choice, options)


def needed_of(recipe: Recipe, choice: NetworkChoice) -> Needed:
    """Raises InputError where the choice and the recipe exclude each other."""
    if choice.pretrained and kind(recipe.factory) != "timm":
        raise InputError(f"{recipe.name} has no pretrained weights in timm: download a checkpoint, pass --checkpoint")
    if choice.num_classes is not None and recipe.num_classes is None:
        raise InputError(f"{recipe.name} does not classify: drop --num-classes")
    if choice.image_size is not None and any(len(i.shape) != 3 for i in recipe.inputs):
        raise InputError(f"{recipe.name} takes no images: drop --image-size")
    if choice.image_size is not None and recipe.input_shape and choice.image_size == recipe.input_shape[1]:
        choice = replace(choice, image_size=None)
    if choice.num_classes == recipe.num_classes and kind(recipe.name) == "recipe":
        choice = replace(choice, num_classes=None)
    return Needed(recipe, choice)


def from_checkpoint(needed: Needed, path: Path) -> tuple[nn.Module, int | None, tuple[str, ...]]:
    """The network with the checkpoint's weights, its number of classes where that alone decided it, and notes."""
    from mlpdeploy.network import checkpoint as checkpoints

    theirs, refusal = checkpoints.read(path, needed.choice.ema), None
    for state, notes in checkpoints.unprefixed(theirs.state, needed.choice.ema):
        try:
            return *_with(needed, state, path), (*theirs.notes, *notes)
        except CheckpointError as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def _with(needed: Needed, theirs: dict[str, Tensor], path: Path) -> tuple[nn.Module, int | None]:
    from mlpdeploy.network import checkpoint as checkpoints

    state, options = checkpoints.translate(theirs, needed.recipe.checkpoint)
    network = needed.make(options)
    classes = options.get("num_classes")
    if needed.choice.num_classes is not None or classes == needed.recipe.num_classes:
        classes = None
    elif classes is None and kind(needed.recipe.name) != "user":
        classes = checkpoints.other_classes(network.state_dict(), state)
        if classes is not None:
            network = Needed(needed.recipe, replace(needed.choice, num_classes=classes)).make(options)
    try:
        checkpoints.load(network.float(), state, str(path))
    except CheckpointError as error:
        if not checkpoints.fits(network.state_dict(), state):
            _explain(needed, theirs, path, error)
        raise
    return network, classes


def _explain(needed: Needed, theirs: dict[str, Tensor], path: Path, error: CheckpointError) -> None:
    """Raises CheckpointError where the checkpoint is known to be for another image size, or for a sibling."""
    recipe = needed.recipe
    if needed.choice.image_size is not None and kind(recipe.name) != "user" and _takes(recipe, theirs):
        raise CheckpointError(
            f"{path}: some of its weights belong to positions in an image of {recipe.name}'s own size and do not fit "
            f"image size {needed.choice.image_size}: drop --image-size"
        ) from error
    for other in recipes().values():
        if other.family == recipe.family and other.name != recipe.name and _takes(other, theirs):
            raise CheckpointError(
                f"{path}: is no checkpoint of {recipe.name}, this looks like {other.name}: pass that name"
            ) from error


def _takes(recipe: Recipe, theirs: dict[str, Tensor]) -> bool:
    """Whether a recipe's network, at its own image size, has the keys and shapes of the checkpoint, classes aside."""
    import torch

    from mlpdeploy.network import checkpoint as checkpoints

    state, options = checkpoints.translate(theirs, recipe.checkpoint)
    with torch.device("meta"):
        ours: Mapping[str, Tensor] = Needed(recipe, NetworkChoice(recipe.name)).make(options).state_dict()
    return checkpoints.fits(ours, state) or checkpoints.other_classes(ours, state) is not None
