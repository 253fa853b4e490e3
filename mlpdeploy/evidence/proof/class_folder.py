"""A folder with a sub-folder for each class: its images, the class of each, and what tells it from another folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlpdeploy.errors import InputError
from mlpdeploy.evidence.proof.images import classes_of, image_files, require_images, spread


@dataclass(frozen=True)
class ClassFolder:
    """`files` in order and their class (n,) among the network's; they are a sample of `found` below `folder`.

    `digest` is a hash of their names, sizes, times of change and classes.
    """

    folder: Path
    files: Sequence[Path]
    labels: np.ndarray
    found: int
    digest: str

    @property
    def classes(self) -> int:
        """How many classes the files are of."""
        return len(np.unique(self.labels))


def class_folder(folder: Path, classes: int, named: Mapping[str, int] | None, limit: int | None) -> ClassFolder:
    """The images of a folder for a network of so many classes: all, or `limit` of them, spread evenly.

    Sub-folders are classes as `classes_of` says, `named` where a class map does. Raises InputError, one line, where the
    folder holds no image, or does not tell the class of each.
    """
    require_images(folder)
    found = sorted(image_files(folder))
    known = classes_of(found, folder, classes, named)
    if isinstance(known, str):
        raise InputError(
            f"{folder} does not tell the class of each image: {known}; give a folder with a sub-folder for each class, "
            "or --class-map FILE, the sub-folders' names in the order of the network's classes, one a line"
        )
    files = spread(found, limit)
    labels = np.array([known[file.relative_to(folder).parts[0]] for file in files], np.int64)
    told = hashlib.sha256()
    for file, label in zip(files, labels, strict=True):
        told.update(f"{file.relative_to(folder)}\0{label}\0{_state(file)}\0".encode(errors="surrogateescape"))
    return ClassFolder(folder, files, labels, len(found), told.hexdigest())


def _state(file: Path) -> tuple[int, int] | None:
    """A file's size, and when it was changed, in nanoseconds; None of one that is gone."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
