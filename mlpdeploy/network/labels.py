"""What the classes of a network are called: by a file of the user's, or ImageNet's own words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlpdeploy.errors import InputError
from mlpdeploy.system.files import parsed, read_text

IMAGENET = 1000
"""Classes of a network that is taken for one of ImageNet-1k's."""


def read_labels(path: Path, classes: int) -> tuple[str, ...]:
    """One label a class: the lines of a text file, or of a .json file a list, or an object by the class's number.

    An object may give a list for each class, whose last word counts. Raises InputError where the file cannot be read,
    and where it has another number of labels than `classes`.
    """
    found = _read(path, "--labels", -1)
    if len(found) != classes:
        raise InputError(f"--labels {path}: has {len(found)} labels, and the network {classes} classes")
    return tuple(found)


def read_class_map(path: Path, classes: int) -> dict[str, int]:
    """The class of each sub-folder's name: the names in the order of the classes, as `read_labels` reads labels.

    Of a list for each class the first word counts. A class may have no name. Raises InputError where the file cannot be
    read, names more than `classes`, or one twice.
    """
    found = _read(path, "--class-map", 0)
    if len(found) > classes:
        raise InputError(f"--class-map {path}: names {len(found)} classes, and the network has {classes}")
    named = {name: index for index, name in enumerate(found) if name}
    if len(named) < sum(map(bool, found)):
        twice = next(name for name in named if found.count(name) > 1)
        raise InputError(f"--class-map {path}: names {twice} twice")
    return named


def _read(path: Path, option: str, word: int) -> list[str]:
    """A text for each class; of a class that JSON has several for, the one at that place."""
    try:
        text = read_text(path)
        if path.suffix.lower() == ".json":
            return _of_json(parsed(text), word)
        return [line.strip() for line in _lines(text)]
    except (OSError, ValueError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise InputError(f"{option} {path}: cannot be read ({reason})") from error


def imagenet() -> tuple[str, ...]:
    """ImageNet-1k's, as timm has them."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return tuple(str(info.index_to_description(index)) for index in range(IMAGENET))


def _lines(text: str) -> Sequence[str]:
    """A class may have no name, but what ends the file is none."""
    return text.rstrip("\n").split("\n") if text.strip() else []


def _of_json(value: Any, word: int) -> list[str]:
    if isinstance(value, dict):
        keys = {str(index) for index in range(len(value))}
        if set(value) != keys:
            raise ValueError("its keys are not the numbers of classes from 0")
        value = [value[str(index)] for index in range(len(value))]
    if not isinstance(value, list):
        raise ValueError("it is neither a list nor an object")
    found = [one[word] if isinstance(one, list) and one else one for one in value]
    if unlike := [one for one in found if not isinstance(one, str)]:
        raise ValueError(f"{str(unlike[0])[:32]} is no text")
    return found
