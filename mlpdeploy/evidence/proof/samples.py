"""What a network is calibrated and verified on: a folder of images, an .npz file, scikit-learn's digits, or noise."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image

from mlpdeploy.errors import InputError, MachineLacks
from mlpdeploy.evidence.proof.images import LIMIT, Preprocess, Skipped, load_folder, require_images
from mlpdeploy.evidence.proof.pixels import laid_out
from mlpdeploy.graph.tracing.rows import alike
from mlpdeploy.progress import Stages
from mlpdeploy.system.files import opened
from mlpdeploy.zoo.recipe import LEVELS, Recipe

if TYPE_CHECKING:
    from mlpdeploy.graph.tracing.trace import TensorSpec
    from mlpdeploy.network.source import Source

DIGITS, RANDOM = "digits", "random"
FEW = 128
"""Rows below which ranges depend on which images happened to be taken."""
LABELS = "labels"
UNREADABLE = (OSError, ValueError, KeyError, EOFError, MemoryError, NotImplementedError, RuntimeError,
              zipfile.BadZipFile, zlib.error, struct.error)  # fmt: skip
"""What reading an .npz file raises that is damaged, encrypted, or promises more than there is memory."""
SKIPPED = 5
"""Unreadable images that are named one by one."""


@dataclass(frozen=True)
class Samples:
    """Rows of every input by name, their classes (n,) where known, and where they came from in words.

    `unlabelled` says why the classes are not known, `prepared` what was done to images, and `found` how many rows there
    were to take these from.
    """

    arrays: Mapping[str, np.ndarray]
    labels: np.ndarray | None = None
    text: str = "given rows"
    random: bool = False
    skipped: tuple[Skipped, ...] = ()
    unlabelled: str = ""
    prepared: str = ""
    found: int | None = None

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(next(iter(self.arrays.values())))

    def warning(self) -> str | None:
        """What its user should know before trusting ranges that come from it."""
        if self.random:
            return "calibrated on random noise: the ranges are not those of real images, do not deploy this engine"
        if alike(self.arrays):
            return "calibrated on rows that are all the same: the ranges are those of one, do not deploy this engine"
        if self.count < FEW:
            return f"calibrated on {self.count} rows only: give {FEW} or more, or the ranges depend on their choice"
        return None

    def left_out(self) -> Iterator[str]:
        """What could not be read, line by line."""
        for skipped in self.skipped[:SKIPPED]:
            yield f"skipped {skipped.file}: {skipped.reason}"
        if len(self.skipped) > SKIPPED:
            yield f"skipped {len(self.skipped) - SKIPPED} more that cannot be read"

    def used(self) -> Iterator[str]:
        """What was read, line by line."""
        why = f": {self.unlabelled}" if self.unlabelled else ""
        yield f"{self.text}, " + ("labelled" if self.labels is not None else f"without labels{why}")
        if self.prepared:
            yield f"images {self.prepared}"
        if self.found is not None and self.found > self.count + len(self.skipped):
            yield f"{self.count} of {self.found} rows are used, spread evenly: --limit N takes more"

    def digest(self) -> str:
        """A hash of every number."""
        found = hashlib.sha256()
        for name, values in sorted(self.arrays.items()):
            found.update(f"{name} {values.dtype} {values.shape}\0".encode())
            found.update(np.ascontiguousarray(values).tobytes())
        return found.hexdigest()


def read_samples(given: str, option: str, source: Source, seed: int, limit: int | None, stages: Stages) -> Samples:
    """As `load_samples`, and says what was read and what was left out."""
    with stages("read samples"):
        samples = load_samples(given, option, source.recipe, source.specs(), seed, limit)
    for line in (*samples.left_out(), *samples.used()):
        stages.say(line)
    return samples


def require(given: str, option: str) -> None:
    """Raise InputError, or MachineLacks, where `load_samples` could not even begin: before a network is loaded."""
    path = Path(given)
    if given == DIGITS and importlib.util.find_spec("sklearn") is None:
        raise MachineLacks(f"{option} digits needs scikit-learn: pip install scikit-learn")
    if given in (DIGITS, RANDOM):
        return
    if path.is_dir():
        return require_images(path)
    if path.suffix == ".npz" and path.is_file():
        return _require_archive(path)
    what = "give a folder of images, an .npz file, digits (scikit-learn's) or random"
    raise InputError(f"{option} {given}: {'' if os.path.lexists(path) else 'there is no such file; '}{what}")


def load_samples(
    given: str, option: str, recipe: Recipe, specs: Sequence[TensorSpec], seed: int, limit: int | None = None
) -> Samples:
    """The rows that `option` names as `given`: `digits`, `random`, an .npz file or a folder of images.

    `limit` of them, spread evenly, where there are more (None: LIMIT). Raises InputError, one line, where nothing there
    can be used, and MachineLacks without scikit-learn for its digits.
    """
    require(given, option)
    path, most = Path(given), limit or LIMIT
    if given == RANDOM:
        rng = np.random.default_rng(seed)
        drawn = {spec.name: spec.draw(limit or FEW, rng) for spec in specs}
        return Samples(drawn, None, f"random noise from seed {seed}", random=True, unlabelled="noise has none")
    if given == DIGITS:
        return _digits(recipe, specs, most)
    if path.is_dir():
        preprocess = Preprocess.of(recipe)
        images = load_folder(path, preprocess, limit=most, num_classes=recipe.num_classes)
        spread = "" if images.found == len(images.files) else f", of {images.found}"
        text = f"{len(images.files)} images below {path}{spread}"
        return Samples(
            {specs[0].name: images.arrays}, images.labels, text, skipped=images.skipped, unlabelled=images.unlabelled,
            prepared=str(preprocess), found=images.found,
        )  # fmt: skip
    return _npz(path, specs, most)


def _digits(recipe: Recipe, specs: Sequence[TensorSpec], limit: int) -> Samples:
    from sklearn.datasets import load_digits

    shape = recipe.input_shape or (specs[0].shape if len(specs) == 1 else ())
    if len(specs) != 1 or len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError(f"{recipe.name} takes no grey or RGB images, so no digits: give an .npz file")
    data = load_digits()
    count = min(limit, len(data.images))
    index = np.arange(count) * len(data.images) // count
    channels, height, width = shape
    grey = np.stack([_resized(image, (width, height)) for image in data.images[index] / 16])[:, None]
    known = recipe.prepared and len(recipe.mean) == channels
    mean, std = (recipe.mean, recipe.std) if known else ((0.5,) * channels, (0.5,) * channels)
    images = (grey - np.reshape(mean, (channels, 1, 1))) / np.reshape(std, (channels, 1, 1))
    classes, labels, why = len(data.target_names), None, ""
    if recipe.num_classes == classes:
        labels = data.target[index].astype(np.int64)
    else:
        why = f"the network has {recipe.num_classes or 'no'} classes, there are {classes} digits"
    return Samples(
        {specs[0].name: laid_out(images.astype(np.float32), recipe.pixels)}, labels,
        f"{count} of scikit-learn's digits", unlabelled=why,
        prepared=str(Preprocess((height, width), 1.0, "bilinear", tuple(mean), tuple(std))), found=len(data.images),
    )  # fmt: skip


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape == size[::-1]:
        return image
    resized = Image.fromarray(image.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float64)


def _require_archive(path: Path) -> None:
    """Whether it is what an .npz file is, without reading its arrays."""
    try:
        with opened(path) as file, contextlib.closing(_archive(file)):
            return
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"{path} is not a readable .npz file: {reason}")


def _archive(file: BinaryIO) -> np.lib.npyio.NpzFile:
    found = np.load(file, allow_pickle=False)
    if not isinstance(found, np.lib.npyio.NpzFile):
        raise ValueError("it holds one array without a name")
    return found


def _npz(path: Path, specs: Sequence[TensorSpec], limit: int) -> Samples:
    try:
        with opened(path) as file, contextlib.closing(_archive(file)) as archive:
            found = {name: archive[name] for name in archive.files}
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
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
    if labels is not None and labels.min() < 0:
        raise InputError(f"{path}: one of its labels is {labels.min()}; classes are numbered from 0")
    index = np.arange(min(count, limit)) * count // min(count, limit)
    arrays = {}
    for spec in specs:
        values = found[spec.name][index]
        if values.dtype.kind not in "fiu":
            raise InputError(f"{path}: {spec.name} holds {values.dtype} values, not real numbers")
        if not np.isfinite(values).all():
            raise InputError(f"{path}: {spec.name} holds {values.dtype} values that are not all finite numbers")
        if spec.dtype.itemsize == 1 and not 0 <= values.min() <= values.max() < LEVELS:
            raise InputError(f"{path}: {spec.name} holds {values.min()} to {values.max()}, and takes bytes")
        arrays[spec.name] = values.astype(np.float32) if spec.dtype.is_floating_point else values.astype(np.int64)
    known = None if labels is None else labels[index].astype(np.int64)
    why = "" if labels is not None else f"there is no array {LABELS!r} in it"
    return Samples(arrays, known, f"{len(index)} rows of {path}", unlabelled=why, found=count)
