"""The preparation of images as part of a network: bytes, or numbers in [0, 1], become what it was trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mlpdeploy.errors import InputError
from mlpdeploy.selection.parse import parse_pixels
from mlpdeploy.selection.service import ServiceChoice
from mlpdeploy.zoo.recipe import LEVELS, UNIT, Input, Recipe

RESIZES = ("bilinear", "bicubic")
"""How an engine can resize."""


@dataclass(frozen=True)
class Resize:
    """To which height and width an image is resized, how, and the height and width of the centre that is cut out."""

    size: tuple[int, int]
    method: str
    centre: tuple[int, int]


class Preparing(nn.Module):
    """A network behind the preparation of its images (b, c, h, w): resized, cut out, and normalised, in float32.

    With a `layout` they are bytes, (b, h, w, c) where it is "hwc"; without one, numbers in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, recipe: Recipe, layout: str | None, resize: Resize | None) -> None:
        super().__init__()
        self.network, self.layout, self.resize = network, layout, resize
        white = 1 if layout is None else LEVELS - 1
        self.register_buffer("mean", white * torch.tensor(recipe.mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", white * torch.tensor(recipe.std).reshape(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        images = images.to(self.mean.dtype)  # before all else: TensorRT reads bytes to convert them, no more
        if self.layout == "hwc":
            images = images.permute(0, 3, 1, 2)
        if self.resize is not None:
            images = self.cut(self.resize, images)
        found: Tensor = self.network((images - self.mean) / self.std)
        return found

    def cut(self, resize: Resize, images: Tensor) -> Tensor:
        """The centre of images, resized as Pillow does, whose results stay among the values of a byte."""
        images = nn.functional.interpolate(images, resize.size, mode=resize.method, antialias=True)
        top, left = (round((edge - kept) / 2) for edge, kept in zip(resize.size, resize.centre, strict=True))
        images = images[..., top : top + resize.centre[0], left : left + resize.centre[1]]
        return images.clamp(0, LEVELS - 1) if resize.method == "bicubic" else images


def preparing(network: nn.Module, recipe: Recipe, choice: ServiceChoice) -> tuple[nn.Module, Recipe]:
    """The network behind the preparation that was chosen, and what is then known of its input.

    Raises InputError where the network takes no single image, or nobody knows how images are prepared for it.
    """
    if len(recipe.inputs) != 1 or len(recipe.inputs[0].shape) != 3 or recipe.inputs[0].dtype != "float32":
        raise InputError(f"{recipe.name} takes no single image: --pixels and --normalize are for networks of images")
    channels, *centre = recipe.inputs[0].shape
    if not recipe.prepared or len(recipe.mean) != channels:
        raise InputError(f"how the images of {recipe.name} are normalised is not known: give --mean and --std, "
                         f"{channels} numbers each")  # fmt: skip
    layout, size = (None, None) if choice.pixels is None else parse_pixels(choice.pixels)
    resize = None if size is None else _resize(recipe, size, (centre[0], centre[1]))
    height, width = size or centre
    shape = (height, width, channels) if layout == "hwc" else (channels, height, width)
    name = recipe.inputs[0].name
    taken = Input(name, shape, low=0.0, high=1.0) if layout is None else Input(name, shape, "uint8", 0, LEVELS)
    known = replace(
        recipe,
        inputs=(taken,),
        input_shape=(channels, height, width),
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        crop=recipe.crop if resize is None else 1.0,
        crop_mode=recipe.crop_mode if resize is None else "center",
        pixels=choice.pixels or UNIT,
    )
    return Preparing(network, recipe, layout, resize).eval(), known


def _resize(recipe: Recipe, size: tuple[int, int], centre: tuple[int, int]) -> Resize | None:
    """From images of one size (height, width) to what evaluation cuts out of them."""
    if recipe.interpolation not in RESIZES:
        raise InputError(f"images of {recipe.name} are resized {recipe.interpolation}, which no engine does: "
                         f"give --resize {' or '.join(RESIZES)}")  # fmt: skip
    if recipe.crop_mode == "border":
        raise InputError(f"images of {recipe.name} get a border, which no engine gives: leave the size out")
    height, width = (math.floor(edge / recipe.crop) for edge in centre)
    if recipe.crop_mode == "squash":
        resized = (height, width)
    elif height == width:
        resized = (size[0] * height // min(size), size[1] * height // min(size))
    else:
        ratio = min(size[0] / height, size[1] / width)
        resized = (round(size[0] / ratio), round(size[1] / ratio))
    return Resize(resized, recipe.interpolation, centre)
