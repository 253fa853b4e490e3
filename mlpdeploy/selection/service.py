"""What surrounds a network in its engine, as it can be chosen: images in, answers out."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from mlpdeploy.errors import InputError
from mlpdeploy.selection.checks import at_least
from mlpdeploy.selection.option import option
from mlpdeploy.selection.parse import parse_pixels


@dataclass(frozen=True)
class ServiceChoice:
    """Which steps around the network its engine does, so that a service sends pixels and gets answers.

    `pixels` says that it takes bytes, height by width by channels (`hwc`) or channels first (`chw`), and normalises
    them; with a size behind it, images of that size alone, which it resizes and crops as the network's evaluation does.
    `normalize` is for images of numbers in [0, 1]. `softmax` makes probabilities of the scores; `topk` gives the
    largest of them and their classes in place of all. `labels` is a file that names the classes (see `read_labels`).
    Raises InputError, on creation, where a value cannot be used.
    """

    _: KW_ONLY
    pixels: str | None = option(
        None,
        "Take bytes, hwc or chw, and normalise them; with a size, such as hwc:480x640, resize and crop too.",
        metavar="LAYOUT[:HxW]",
    )
    normalize: bool = option(False, "Take images in [0, 1], and normalise them.", flag="--normalize")
    softmax: bool = option(False, "Give probabilities.", flag="--softmax")
    topk: int | None = option(None, "Give the K largest scores and their classes.", metavar="K")
    labels: Path | None = option(None, "What the classes are called: a line each, or JSON.", metavar="FILE")

    def __post_init__(self) -> None:
        if self.pixels is not None:
            parse_pixels(str(self.pixels))
            if self.normalize:
                raise InputError("--pixels normalises by itself: drop --normalize")
        at_least("top k", self.topk, 1)

    @property
    def prepares(self) -> bool:
        """Whether anything is done in front of the network."""
        return self.pixels is not None or self.normalize

    @property
    def answers(self) -> bool:
        """Whether anything is done behind it."""
        return self.softmax or self.topk is not None
