"""What may surround a network in its engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlpdeploy.errors import InputError
from mlpdeploy.selection import Selection
from mlpdeploy.selection.arguments import arguments
from mlpdeploy.selection.parse import parse_pixels


@pytest.mark.parametrize(
    ("text", "layout", "size"),
    [("hwc", "hwc", None), ("chw", "chw", None), ("hwc:480x640", "hwc", (480, 640)), (" chw:1x1 ", "chw", (1, 1))],
)
def test_pixels(text: str, layout: str, size: tuple[int, int] | None) -> None:
    assert parse_pixels(text) == (layout, size)


@pytest.mark.parametrize(
    "text", ["", "uint8", "HWC", "hwc:", "hwc:480", "hwc:0x10", "hwc:-1x10", "hwc:480x640x3", "nhwc"]
)
def test_what_says_no_pixels(text: str) -> None:
    with pytest.raises(InputError, match="give hwc or chw, perhaps with the size of all images"):
        Selection("mixer_s32", pixels=text)


def test_pixels_are_normalised_anyway() -> None:
    with pytest.raises(InputError, match="drop --normalize"):
        Selection("mixer_s32", pixels="hwc", normalize=True)


@pytest.mark.parametrize("topk", [0, -1])
def test_the_largest_are_one_at_least(topk: int) -> None:
    with pytest.raises(InputError, match="top k"):
        Selection("mixer_s32", topk=topk)


def test_a_selection_is_read_back_and_said_again() -> None:
    selection = Selection("mixer_s32", pixels="hwc:256x256", softmax=True, topk=5, labels=Path("some/labels.txt"))
    assert Selection.from_json(selection.to_json()) == selection
    said = ["--pixels", "hwc:256x256", "--softmax", "--topk", "5", "--labels", "some/labels.txt"]
    assert [word for word in arguments("build", selection.to_json()) if word in said] == said
