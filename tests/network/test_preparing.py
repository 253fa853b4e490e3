"""Images that a network prepares by itself: as evaluation does, and at no cost where that can be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mlpdeploy.errors import InputError
from mlpdeploy.evidence.proof.images import Preprocess, transform
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import trace
from mlpdeploy.network.source import Source
from mlpdeploy.selection import Selection
from mlpdeploy.zoo.recipe import GIVEN, Input, given

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
aten = torch.ops.aten


class Itself(nn.Module):
    """Gives the images that it gets."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1.0


class Patches(nn.Module):
    """Whose first operation is a convolution of patches, with or without padding."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, 4, padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


def source(network: nn.Module, size: tuple[int, int] = (24, 24), channels: int = 3) -> Source:
    return Source(given(f"{GIVEN}Net", (Input("input", (channels, *size)),)), network.eval())


def asked(**options: object) -> Selection:
    return Selection(f"{GIVEN}Net", **{"mean": MEAN, "std": STD, **options})  # type: ignore[arg-type]


def prepared(found: Source, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(found.network(torch.tensor(images)))


@pytest.mark.parametrize("layout", ["hwc", "chw"])
def test_bytes_are_normalised(layout: str) -> None:
    found = source(Itself()).with_images(asked(pixels=layout))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3)).astype(np.uint8)
    taken = pixels if layout == "hwc" else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    (spec,) = found.specs()
    assert (spec.shape, spec.dtype, spec.low, spec.high) == (taken.shape[1:], torch.uint8, 0, 256)
    expected = ((pixels / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(prepared(found, taken), expected, rtol=0, atol=1e-6)


def test_numbers_of_0_to_1_are_normalised() -> None:
    found = source(Itself()).with_images(asked(normalize=True))
    (spec,) = found.specs()
    assert (spec.shape, spec.dtype, spec.low, spec.high) == ((3, 24, 24), torch.float32, 0.0, 1.0)
    images = np.random.default_rng(0).random((1, 3, 24, 24), dtype=np.float32)
    expected = (images - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    np.testing.assert_allclose(prepared(found, images), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop", [1.0, 0.875])
@pytest.mark.parametrize(
    ("taken", "size"),
    [((48, 64), (24, 24)), ((64, 37), (24, 24)), ((20, 20), (24, 24)), ((60, 41), (24, 16)), ((24, 24), (24, 24))],
    ids=str,
)
def test_images_of_one_size_are_resized_as_evaluation_does(
    taken: tuple[int, int], size: tuple[int, int], crop: float, method: str
) -> None:
    options = asked(pixels=f"hwc:{taken[0]}x{taken[1]}", resize=method, crop=crop)
    found = source(Itself(), size).with_images(options)
    rough = np.random.default_rng(0).integers(0, 256, (6, 5, 3)).astype(np.uint8)
    image = Image.fromarray(rough).resize(taken[::-1], Image.Resampling.BICUBIC)
    expected = transform(image, Preprocess(size, crop, method, MEAN, STD))
    (got,) = prepared(found, np.asarray(image)[None])
    assert got.shape == expected.shape
    # Pillow rounds to bytes behind each of the two axes.
    assert np.abs((got - expected) * np.reshape(STD, (3, 1, 1)) * 255).max() < 1.6


def test_what_evaluation_resizes_is_known_to_be_whole_then() -> None:
    found = source(Itself()).with_images(asked(pixels="chw:48x48", resize="bilinear", crop=0.5)).recipe
    assert (found.crop, found.mean, found.std, found.pixels) == (1.0, (0.0,) * 3, (1.0,) * 3, "chw:48x48")
    assert source(Itself()).with_images(asked(pixels="hwc", crop=0.5)).recipe.crop == 0.5


def test_it_is_prepared_once() -> None:
    once = source(Itself()).with_images(asked(pixels="hwc"))
    again = once.with_images(asked(pixels="hwc", mean=(0.1,) * 3, std=(0.9,) * 3))
    assert again.network is once.network and again.recipe == once.recipe
    assert once.bare.network is once.network.network and once.bare.recipe.inputs[0].dtype == "float32"


@pytest.mark.parametrize(("padding", "left"), [(0, 0), (1, 1)])
def test_normalising_goes_into_the_first_convolution(padding: int, left: int) -> None:
    # Outside of an image lie zeros: there the subtraction of the mean cannot go into a bias.
    found = source(Patches(padding)).with_images(asked(pixels="chw"))
    graph = rewrite(trace(found.network, found.specs())).module.graph
    targets = [node.target for node in graph.find_nodes(op="call_function", target=aten.sub.Tensor)]
    others = [node for node in graph.nodes if node.target in (aten.div.Tensor, aten.mul.Tensor)]
    assert (len(targets), others) == (left, [])


@pytest.mark.parametrize(
    ("found", "options", "told"),
    [
        (source(Itself()), {"mean": None, "std": None}, "is not known: give --mean and --std, 3 numbers each"),
        (source(Itself(), channels=1), {}, "is not known: give --mean and --std, 1 numbers each"),
        (source(Itself()), {"pixels": "hwc:9x9", "resize": "lanczos"}, "give --resize bilinear or bicubic"),
    ],
    ids=["mean", "channels", "lanczos"],
)
def test_what_cannot_be_prepared(found: Source, options: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        found.with_images(asked(**{"pixels": "hwc", **options}))


@pytest.mark.parametrize(
    "inputs", [(Input("x", (5,)),), (Input("ids", (3, 4, 4), "int64", 0, 9),), (Input("a", (3, 4, 4)),) * 2]
)
def test_what_is_no_image(inputs: tuple[Input, ...]) -> None:
    other = source(Itself())
    with pytest.raises(InputError, match="takes no single image"):
        replace(other, recipe=replace(other.recipe, inputs=inputs)).with_images(asked(normalize=True))


def test_a_grey_image(tmp_path: Path) -> None:
    found = source(Itself(), channels=1).with_images(asked(pixels="hwc", mean=(0.5,), std=(0.25,)))
    pixels = np.full((1, 24, 24, 1), 255, np.uint8)
    np.testing.assert_allclose(prepared(found, pixels), 2.0, rtol=0, atol=1e-6)
