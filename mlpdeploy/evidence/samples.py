"""What a network is calibrated and verified on: a folder of images, an .npz file, scikit-learn's digits, or noise."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mlpdeploy.errors import InputError, MachineLacks
from mlpdeploy.evidence.images import Preprocess, Skipped, load_folder
from mlpdeploy.progress import Stages
from mlpdeploy.recipe import Recipe

if TYPE_CHECKING:
    from mlpdeploy.graph.trace import TensorSpec

DIGITS, RANDOM = "digits", "random"
FEW = 128
"""Rows below which ranges depend on which images happened to be taken."""
LIMIT = 256
"""Rows that are taken, spread evenly, where there are more: enough to see top-1 change by half a per cent."""
LABELS = "labels"
SKIPPED = 5
"""Unreadable images that are named one by one."""


@dataclass(frozen=True)
class Samples:
    """Rows of every input by name, their classes (n,) where known, and where they came from in words."""

    arrays: Mapping[str, np.ndarray]
    labels: np.ndarray | None = None
    text: str = "given rows"
    random: bool = False
    skipped: tuple[Skipped, ...] = ()

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(next(iter(self.arrays.values())))

    def warning(self) -> str | None:
        """What its user should know before trusting ranges that come from it."""
        if self.random:
            return "calibrated on random noise: the ranges are not those of real images, do not deploy this engine"
        if self.count < FEW:
            return f"calibrated on {self.count} rows only: give {FEW} or more, or the ranges depend on their choice"
        return None

    def digest(self) -> str:
        """A hash of every number."""
        found = hashlib.sha256()
        for name, values in sorted(self.arrays.items()):
            found.update(f"{name} {values.dtype} {values.shape}\0".encode())
            found.update(np.ascontiguousarray(values).tobytes())
        return found.hexdigest()


def read_samples(
    given: str, option: str, recipe: Recipe, specs: Sequence[TensorSpec], seed: int, stages: Stages
) -> Samples:
    """As `load_samples`, and says what was read and what was left out."""
    with stages("read samples"):
        samples = load_samples(given, option, recipe, specs, seed)
    for skipped in samples.skipped[:SKIPPED]:
        stages.say(f"skipped {skipped.file}: {skipped.reason}")
    if len(samples.skipped) > SKIPPED:
        stages.say(f"skipped {len(samples.skipped) - SKIPPED} more that cannot be read")
    stages.say(f"{samples.text}, {'without labels' if samples.labels is None else 'labelled'}")
    return samples


def load_samples(given: str, option: str, recipe: Recipe, specs: Sequence[TensorSpec], seed: int) -> Samples:
    """The rows that `option` names as `given`: `digits`, `random`, an .npz file or a folder of images.

    Raises InputError, one line, where nothing there can be used, and MachineLacks without scikit-learn for its digits.
    """
    path = Path(given)
    if given == RANDOM:
        rng = np.random.default_rng(seed)
        drawn = {spec.name: spec.draw(FEW, rng) for spec in specs}
        return Samples(drawn, None, f"random noise from seed {seed}", random=True)
    if given == DIGITS:
        return _digits(option, recipe, specs)
    if path.is_dir():
        images = load_folder(path, Preprocess.of(recipe), limit=LIMIT, num_classes=recipe.num_classes)
        spread = "" if images.found == len(images.files) else f", of {images.found}"
        text = f"{len(images.files)} images below {path}{spread}"
        return Samples({specs[0].name: images.arrays}, images.labels, text, skipped=images.skipped)
    if path.suffix == ".npz":
        return _npz(path, specs)
    raise InputError(f"{option} {given}: give a folder of images, an .npz file, {DIGITS} (scikit-learn's) or {RANDOM}")


def _digits(option: str, recipe: Recipe, specs: Sequence[TensorSpec]) -> Samples:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MachineLacks(f"{option} digits needs scikit-learn: pip install scikit-learn") from error
    if len(specs) != 1 or len(specs[0].shape) != 3 or specs[0].shape[0] not in (1, 3):
        raise InputError(f"{recipe.name} takes no grey or RGB images, so no digits: give an .npz file")
    data = load_digits()
    index = np.arange(LIMIT) * len(data.images) // LIMIT
    channels, height, width = specs[0].shape
    grey = np.stack([_resized(image, (width, height)) for image in data.images[index] / 16])[:, None]
    colour = channels == 3 and len(recipe.mean) == 3
    mean, std = (recipe.mean, recipe.std) if colour else ((0.5,) * channels, (0.5,) * channels)
    shape = (1, channels, 1, 1)
    images = (grey - np.reshape(mean, shape)) / np.reshape(std, shape)
    known = recipe.num_classes == len(data.target_names)
    labels = data.target[index].astype(np.int64) if known else None
    return Samples({specs[0].name: images.astype(np.float32)}, labels, f"{LIMIT} of scikit-learn's digits")


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape == size[::-1]:
        return image
    resized = Image.fromarray(image.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float64)


def _npz(path: Path, specs: Sequence[TensorSpec]) -> Samples:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a readable .npz file: {' '.join(str(error).split())}") from error
    labels = found.pop(LABELS, None)
    if len(specs) == 1 and len(found) == 1:
        found = {specs[0].name: next(iter(found.values()))}
    wanted = ", ".join(f"{spec.name} (n, {', '.join(map(str, spec.shape))})" for spec in specs)
    shapes = ", ".join(f"{name} {values.shape}" for name, values in found.items()) or "nothing"
    fits = all(spec.name in found and found[spec.name].shape[1:] == spec.shape for spec in specs)
    counts = {len(found[spec.name]) for spec in specs} if fits else set()
    if len(counts) != 1 or 0 in counts:
        raise InputError(f"{path} holds {shapes}; this network takes arrays {wanted}, all with the same n above 0")
    (count,) = counts
    if labels is not None and (labels.shape != (count,) or labels.dtype.kind not in "iu"):
        raise InputError(f"{path}: its labels are {labels.dtype} {labels.shape}, not {count} whole numbers")
    index = np.arange(min(count, LIMIT)) * count // min(count, LIMIT)
    arrays = {}
    for spec in specs:
        values = found[spec.name][index]
        if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
            raise InputError(f"{path}: {spec.name} holds {values.dtype} values that are not all finite numbers")
        arrays[spec.name] = values.astype(np.float32) if spec.dtype.is_floating_point else values.astype(np.int64)
    text = f"{len(index)} rows of {path}"
    return Samples(arrays, None if labels is None else labels[index].astype(np.int64), text)
