"""A folder of images becomes the arrays that a network expects, exactly as in its published evaluation.

Files are read by PyTorch's DataLoader, in this process or by workers, and prepared by timm's own transforms.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mlpdeploy.errors import InputError, MlpdeployError
from mlpdeploy.evidence.proof.pixels import laid_out
from mlpdeploy.selection.choice import RESIZES
from mlpdeploy.system.files import opened
from mlpdeploy.system.processes import left_to_its_parent
from mlpdeploy.zoo.recipe import Recipe

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LIMIT = 256
"""Images that a check reads unless it is told otherwise: enough to see top-1 change by half a per cent."""
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
CROPS = {"center": "centre crop", "squash": "squashed, centre crop", "border": "with a border, centre crop"}
"""timm's crop modes, and what they are called."""
AT_ONCE = 16
"""Images that a worker reads before it hands them over: few, since two such lots of each worker wait in memory."""


@dataclass(frozen=True)
class Preprocess:
    """What evaluation does to an image: resize, centre crop, scale to [0, 1], subtract `mean`, divide by `std`.

    The shorter edge is resized to floor(size / crop), its aspect kept, and the centre of (height, width) `size` is
    cut out; other modes of timm's are `squash`, which keeps no aspect, and `border`, which cuts nothing off. One mean
    and one std a channel: three channels are RGB, one is grey. `pixels` says what a network that normalises by itself
    takes (see `Recipe`).
    """

    size: tuple[int, int]
    crop: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_mode: str = "center"
    pixels: str = ""

    def __post_init__(self) -> None:
        if self.interpolation not in RESIZES:
            known = ", ".join(sorted(RESIZES))
            raise InputError(f"no interpolation is called {self.interpolation!r}; there are {known}")
        if self.crop_mode not in CROPS:
            raise InputError(f"no crop is called {self.crop_mode!r}; there are {', '.join(CROPS)}")
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise InputError(
                f"{len(self.mean)} means and {len(self.std)} stds: images have 1 or 3 channels, one of each"
            )
        if min(self.size) < 1 or not 0 < self.crop <= 1 or min(self.std) <= 0:
            raise InputError(f"size {self.size}, crop {self.crop} and std {self.std} do not describe a preprocessing")

    def __str__(self) -> str:
        cut = f"resized {self.interpolation}, {CROPS[self.crop_mode]} {self.crop:.4g}"
        if self.pixels:
            return f"{cut}, normalised in the engine"
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"{cut}, mean {mean}, std {std}"

    @classmethod
    def of(cls, recipe: Recipe) -> Preprocess:
        """That of a recipe whose input shape (channels, height, width) is known.

        Raises InputError for other inputs, and where nobody said how the images of a network of one's own are prepared.
        """
        shapes = [recipe.input_shape or one.shape for one in recipe.inputs] or [recipe.input_shape]
        if len(shapes) != 1 or len(shapes[0]) != 3:
            takes = ", ".join(f"{i.name} {i.shape} of {i.dtype}" for i in recipe.inputs)
            raise InputError(f"{recipe.name} takes no single image but {takes}: give an .npz file with these arrays")
        if not recipe.prepared:
            raise InputError(
                f"how the images of {recipe.name} are prepared is not known: give mean and std, one number a channel "
                f"(--mean M,... --std S,...; --crop and --resize where they are not {recipe.crop} and "
                f"{recipe.interpolation}), or an .npz file of prepared rows"
            )
        channels, height, width = shapes[0]
        if channels != len(recipe.mean):
            raise InputError(
                f"{recipe.name} takes inputs of shape {shapes[0]}, there are {len(recipe.mean)} means: give mean and "
                "std, one number a channel (1 or 3), or an .npz file of prepared rows"
            )
        mean, std = tuple(recipe.mean), tuple(recipe.std)
        return cls((height, width), recipe.crop, recipe.interpolation, mean, std, recipe.crop_mode, recipe.pixels)


@dataclass(frozen=True)
class Skipped:
    """An image file that could not be used."""

    file: Path
    reason: str


@dataclass(frozen=True)
class Images:
    """`arrays` (n, channels, height, width) float32, the files they came from, and those that were skipped.

    `labels` (n,) int64 index the network's classes; None where the folder's names do not tell them, and `unlabelled`
    says why. `found` counts all image files below the folder, of which these are a sample where it is larger.
    """

    arrays: np.ndarray
    files: tuple[Path, ...]
    labels: np.ndarray | None
    skipped: tuple[Skipped, ...]
    found: int
    unlabelled: str = ""


def load_folder(
    folder: Path, preprocess: Preprocess, *, limit: int | None = LIMIT, num_classes: int | None = None
) -> Images:
    """Read the images below `folder`, in any layout of sub-folders, in the order of their paths.

    `limit` takes so many, spread evenly over the whole folder; None takes all, at 0.6 MB each in 224x224. Labels are
    known where `classes_of` finds them. Raises InputError, one line, where no image can be read.
    """
    require_images(folder)
    found = sorted(image_files(folder))
    classes, taken = classes_of(found, folder, num_classes), spread(found, limit)
    unlabelled = classes if isinstance(classes, str) else ""
    skipped: list[Skipped] = []
    read = [*readable(taken, preprocess, skipped)]
    if not read:
        raise unreadable(skipped)
    files, arrays = zip(*read, strict=True)
    labels = None
    if not isinstance(classes, str):
        labels = np.array([classes[file.relative_to(folder).parts[0]] for file in files], dtype=np.int64)
    return Images(np.stack(arrays), files, labels, tuple(skipped), len(found), unlabelled)


def spread(files: Sequence[Path], limit: int | None) -> Sequence[Path]:
    """So many files, spread evenly over all of them; all where `limit` is None."""
    return files if limit is None or limit >= len(files) else [files[i * len(files) // limit] for i in range(limit)]


def unreadable(skipped: Sequence[Skipped], count: int | None = None) -> InputError:
    """What to say where no image can be read: those that were skipped, or so many, of which these are the first."""
    first = f"{skipped[0].file} {skipped[0].reason}"
    return InputError(f"none of the {count or len(skipped)} images can be read; the first: {first}")


def readable(
    files: Sequence[Path], preprocess: Preprocess, skipped: list[Skipped], workers: int = 0
) -> Generator[tuple[Path, np.ndarray], None, None]:
    """Each file with its image, see `read_image`, in order; `skipped` takes those that are none.

    With `workers` so many processes read ahead; they end with the iterator, so close it. Raises MlpdeployError where
    one of them is killed.
    """
    import torch
    from torch.utils.data import DataLoader

    _transform(preprocess)  # here, and processes that are forked need not import what it needs
    data: Any = _Files(files, preprocess)
    with warnings.catch_warnings():
        # More workers than cores are as asked; and of the threads at a fork, those that read need none.
        warnings.simplefilter("ignore")
        made: Any = DataLoader(data, AT_ONCE, num_workers=workers, collate_fn=list, generator=torch.Generator(),
                               worker_init_fn=left_to_its_parent)  # fmt: skip
        read = iter(made)
    try:
        for file, found in zip(files, chain.from_iterable(read), strict=True):
            if isinstance(found, str):
                skipped.append(Skipped(file, found))
            else:
                yield file, found
    except RuntimeError as error:  # what PyTorch raises where a worker is gone
        if "worker" not in str(error):
            raise
        raise MlpdeployError(f"a process that reads images has ended: {error}; give fewer --workers") from error


class _Files:
    """What PyTorch's loader reads: by the place of a file its image, or why there is none."""

    def __init__(self, files: Sequence[Path], preprocess: Preprocess) -> None:
        self.files, self.preprocess = files, preprocess

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> np.ndarray | str:
        file = self.files[place]
        try:
            return read_image(file, self.preprocess)
        except InputError as error:
            return str(error).removeprefix(f"{file} ")


def require_images(folder: Path) -> None:
    """Raise InputError where there is no folder, or no image file in it at any depth."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of images")
    if next(image_files(folder), None) is None:
        raise InputError(f"no image below {folder}: give a folder of images ({', '.join(sorted(SUFFIXES))})")


def read_image(file: Path, preprocess: Preprocess) -> np.ndarray:
    """One image as (channels, height, width) float32. Raises InputError where the file is no whole image."""
    try:
        with warnings.catch_warnings(), opened(file) as content:
            # Pillow warns of doubtful metadata and of large images; what it cannot decode it raises.
            warnings.simplefilter("ignore")
            with Image.open(content) as image:
                return transform(image.convert("RGB" if len(preprocess.mean) == 3 else "L"), preprocess)
    # Pillow's decoders report damage as any of these.
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        text = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        text = re.sub(r" <_io\.\w+ name=\S+>", "", text)  # what Pillow was given, which is the file
        raise InputError(f"{file} is not a readable image: {' '.join(text.split()) or type(error).__name__}") from error


def transform(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    """One RGB or grey image as timm's evaluation prepares it: (channels, height, width) float32, or bytes.

    Raises ValueError where a thin image would become one that is larger than Pillow opens.
    """
    short, long = sorted(image.size)
    edge = max(preprocess.size) / preprocess.crop
    if Image.MAX_IMAGE_PIXELS and edge**2 * long / short > 2 * Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"of {image.width}x{image.height} pixels, it is too long to be resized to {edge:.0f} across")
    return laid_out(np.asarray(_transform(preprocess)(image).numpy()), preprocess.pixels)


@cache
def _transform(preprocess: Preprocess) -> Callable[[Image.Image], Any]:
    from timm.data.transforms_factory import create_transform

    made: Callable[[Image.Image], Any] = create_transform(
        (len(preprocess.mean), *preprocess.size), crop_pct=preprocess.crop, interpolation=preprocess.interpolation,
        mean=preprocess.mean, std=preprocess.std, crop_mode=preprocess.crop_mode,
    )  # fmt: skip
    return made


def image_files(folder: Path) -> Iterator[Path]:
    """Image files at any depth, through links to folders but never round a loop; hidden ones left out."""
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, n) for n in names if Path(n).suffix.lower() in SUFFIXES and not n.startswith("."))


def classes_of(
    files: Sequence[Path], folder: Path, num_classes: int | None, named: Mapping[str, int] | None = None
) -> Mapping[str, int] | str:
    """The class index of each first-level sub-folder of a folder with these files, or why the layout does not say.

    `named` has the class of each name, where that is known. Else names are the classes' numbers, or there are
    `num_classes` such sub-folders, which then count in alphabetical order.
    """
    names = set[str]()
    for file in files:
        first, *rest = file.relative_to(folder).parts
        if not rest:
            return f"{first} lies in no sub-folder named by its class"
        names.add(first)
    if named is not None:
        other = min(names - named.keys(), default=None)
        return named if other is None else f"sub-folder {other} is none of the classes that are named"
    if all(name.isascii() and name.isdigit() for name in names):
        numbers = {name: int(name) for name in names}
        if num_classes is None or max(numbers.values()) < num_classes:
            return numbers
        return f"sub-folder {max(numbers, key=numbers.__getitem__)} is none of {num_classes} classes, numbered from 0"
    if num_classes is None:
        return "the network does not tell how many classes it has"
    if len(names) != num_classes:
        return f"{len(names)} sub-folders are not the {num_classes} classes of the network"
    return {name: index for index, name in enumerate(sorted(names))}
