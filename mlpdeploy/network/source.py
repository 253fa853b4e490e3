"""Stage 0: a name and perhaps a checkpoint become a network, with everything that is known about it.

Neither torch nor timm is imported before a network is built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy.errors import InputError
from mlpdeploy.network.chosen import Needed, from_checkpoint, needed_of
from mlpdeploy.network.finding import find
from mlpdeploy.selection import Selection
from mlpdeploy.selection.choice import NetworkChoice
from mlpdeploy.selection.parse import parse_input
from mlpdeploy.zoo.recipe import IMAGE, Input, Recipe, done_within, kind

if TYPE_CHECKING:
    from torch import nn

    from mlpdeploy.graph.tracing.trace import TensorSpec

# Our names of preprocessing facts, and those of timm's `pretrained_cfg`.
_TIMM = {
    "input_shape": "input_size",
    "mean": "mean",
    "std": "std",
    "crop": "crop_pct",
    "crop_mode": "crop_mode",
    "interpolation": "interpolation",
    "num_classes": "num_classes",
}


@dataclass(frozen=True)
class Source:
    """The network as it was asked for, in float32 and eval mode, its recipe completed, and notes for the reader."""

    recipe: Recipe
    network: nn.Module
    notes: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    """What the outputs are called, where that was asked for."""
    within: Source | None = None
    """The network without the preparation of images that stands in front of it here."""

    def specs(self) -> list[TensorSpec]:
        """What the network takes."""
        import torch

        from mlpdeploy.graph.tracing.trace import TensorSpec

        return [
            TensorSpec(i.name, i.shape, getattr(torch, i.dtype), i.low, i.high, *self._pixels(i))
            for i in self.recipe.inputs
        ]

    def with_images(self, asked: Selection) -> Source:
        """The same with its images prepared as asked, by the network itself where that was asked for.

        What is None is as the recipe says. Raises InputError where what was asked for cannot be.
        """
        options = {"mean": asked.mean, "std": asked.std, "crop": asked.crop, "interpolation": asked.resize}
        within = done_within(self.recipe.pixels)
        given: dict[str, Any] = {n: value for n, value in options.items() if value is not None and n not in within}
        prepared = self.recipe.prepared or asked.mean is not None
        found = replace(self, recipe=replace(self.recipe, **given, prepared=prepared))
        if not asked.prepares or found.recipe.pixels:
            return found
        from mlpdeploy.network.preparing import preparing

        network, recipe = preparing(found.network, found.recipe, asked)
        return replace(found, network=network, recipe=recipe, within=found)

    @property
    def bare(self) -> Source:
        """The network without a preparation of images in front of it."""
        return self.within or self

    def called(self, names: Sequence[str], outputs: Sequence[str]) -> Source:
        """The same with its inputs called by these names (none: as they are), and outputs to be called by those.

        Raises InputError for another number of names than inputs, and for an output called as an input.
        """
        inputs = self.recipe.inputs
        if names and len(names) != len(inputs):
            raise InputError(f"--input-names: {len(names)} names, and {self.recipe.name} takes {len(inputs)} inputs")
        if names:
            inputs = tuple(replace(one, name=name) for one, name in zip(inputs, names, strict=True))
        if both := {one.name for one in inputs} & set(outputs):
            raise InputError(f"--output-names: {min(both)} is what an input is called; give the output another name")
        return replace(self, recipe=replace(self.recipe, inputs=inputs), output_names=tuple(outputs))

    def with_outputs(self, outputs: Sequence[TensorSpec]) -> Source:
        """The same, and of a network of one's own how many classes it has: as many as its first row of numbers."""
        if kind(self.recipe.name) not in ("user", "given"):
            return self
        rows = (spec.shape[0] for spec in outputs if len(spec.shape) == 1 and spec.shape[0] > 1)
        return replace(self, recipe=replace(self.recipe, num_classes=next(rows, None)))

    def _pixels(self, of: Input) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """A black and a white pixel of an image whose normalisation is known; nothing of another input."""
        recipe = self.recipe
        channels = of.shape[0] if of.dtype == "float32" and len(of.shape) == 3 and of.low is None else None
        if not recipe.prepared or channels != len(recipe.mean):
            return (), ()

        def pixel(value: int) -> tuple[float, ...]:
            return tuple((value - mean) / std for mean, std in zip(recipe.mean, recipe.std, strict=True))

        return pixel(0), pixel(1)


def reference(
    name: str,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    *,
    image_size: int | None = None,
    num_classes: int | None = None,
    pretrained: bool = False,
    ema: bool | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> nn.Module:
    """The network of a name, in eval mode, in float32, on the CPU; most take images (b, c, h, w) to logits.

    Its weights are the checkpoint's (loaded strictly, in the authors' format or timm's), or timm's pretrained ones,
    or else random ones that depend on `seed` only; the global random state stays as it was. A recipe's network gets
    the checkpoint's number of classes unless `num_classes` says another. A user's network keeps the weights that its
    factory gave it (with torch seeded by `seed`), since these may be trained ones. For it, `input_shape` (c, h, w) says
    what it takes; it plays no part in building.

    Raises InputError where the network cannot be made as asked, CheckpointError where the checkpoint does not fit,
    MachineLacks where pretrained weights cannot be fetched.
    """
    choice = NetworkChoice(
        name,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        seed=seed,
        image_size=image_size,
        num_classes=num_classes,
        pretrained=pretrained,
        ema=ema,
        input_shape=input_shape,
    )
    return _network(needed_of(find(name), choice))[0]


def source_of(choice: NetworkChoice) -> Source:
    """The network that was chosen, as `reference` gives it, its recipe completed, its inputs and outputs called.

    Raises what `reference` raises, and InputError where nothing says what shape the network takes.
    """
    recipe = find(choice.name)
    network, classes, notes = _network(needed_of(recipe, choice))
    if choice.checkpoint is not None and recipe.alike:
        others = " and ".join(recipe.alike)
        told = f"checkpoints of {others} have the same keys and shapes: nothing tells that this is {recipe.name}"
        notes = (told, *notes)
    if classes is not None:
        notes = (f"{classes} classes, as in the checkpoint", *notes)
    known = complete(
        recipe,
        network,
        inputs=tuple(map(parse_input, choice.inputs)),
        image_size=choice.image_size,
        input_shape=choice.input_shape,
        num_classes=choice.num_classes or classes,
    )
    return Source(known, network, notes).called(choice.input_names, choice.output_names)


def complete(
    recipe: Recipe,
    network: nn.Module,
    *,
    image_size: int | None = None,
    input_shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
    inputs: tuple[Input, ...] = (),
) -> Recipe:
    """The recipe with what the built network knows: its inputs and, for timm's networks, the preprocessing.

    A network whose inputs are not one image may say what they are, where `inputs` does not: in an attribute of that
    name, a tuple of `Input`.
    Raises InputError where nothing says what shape the network takes.
    """
    config = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None)
    if not recipe.input_shape and isinstance(config, Mapping):
        known = {ours: config[theirs] for ours, theirs in _TIMM.items() if config.get(theirs)}
        facts: dict[str, Any] = {ours: tuple(v) if isinstance(v, list) else v for ours, v in known.items()}
        recipe = replace(recipe, **facts, prepared=recipe.prepared or {"mean", "std"} <= facts.keys())
    recipe = replace(recipe, num_classes=num_classes or recipe.num_classes)
    told = getattr(network, "inputs", None)
    if inputs:
        recipe = replace(recipe, inputs=inputs)
    elif isinstance(told, tuple) and told and all(isinstance(one, Input) for one in told):
        recipe = replace(recipe, inputs=told)
    if recipe.inputs:
        if image_size is None:
            return recipe
        sized = (replace(i, shape=(*i.shape[:-2], image_size, image_size)) for i in recipe.inputs)
        return replace(recipe, inputs=tuple(sized))
    shape = tuple(input_shape or recipe.input_shape)
    if not shape:
        raise InputError(f"nothing says what images {recipe.name} takes: pass --input-shape CHANNELS,HEIGHT,WIDTH")
    if image_size is not None and input_shape is None:
        shape = (shape[0], image_size, image_size)
    return replace(recipe, input_shape=shape, inputs=(Input(IMAGE, shape),))


def _network(needed: Needed) -> tuple[nn.Module, int | None, tuple[str, ...]]:
    """The network with its weights, its number of classes where the checkpoint alone decided it, and notes.

    Raises NetworkError where its weights cannot be used.
    """
    from mlpdeploy.network import random_weights, sound
    from mlpdeploy.system.guest import in_eval, require_usable

    classes: int | None = None
    told: tuple[str, ...] = ()
    choice = needed.choice
    if choice.checkpoint is not None:
        network, classes, told = from_checkpoint(needed, choice.checkpoint)
    else:
        network = needed.make({})
        if not choice.pretrained and kind(needed.recipe.name) != "user":
            random_weights.randomise(network, choice.seed)
    require_usable(network)
    notes = (*told, *sound.in_float32(network))
    return in_eval(network).requires_grad_(False), classes, notes
