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
    try:
        text = read_text(path)
        found = _of_json(parsed(text)) if path.suffix.lower() == ".json" else [line.strip() for line in _lines(text)]
    except (OSError, ValueError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise InputError(f"--labels {path}: cannot be read ({reason})") from error
    if len(found) != classes:
        raise InputError(f"--labels {path}: has {len(found)} labels, and the network {classes} classes")
    return tuple(found)


def imagenet() -> tuple[str, ...]:
    """ImageNet-1k's, as timm has them."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return tuple(str(info.index_to_description(index)) for index in range(IMAGENET))


def _lines(text: str) -> Sequence[str]:
    """A class may have no name, but what ends the file is none."""
    return text.rstrip("\n").split("\n") if text.strip() else []


def _of_json(value: Any) -> list[str]:
    if isinstance(value, dict):
        keys = {str(index) for index in range(len(value))}
        if set(value) != keys:
            raise ValueError("its keys are not the numbers of classes from 0")
        value = [value[str(index)] for index in range(len(value))]
    if not isinstance(value, list):
        raise ValueError("it is neither a list nor an object")
    found = [one[-1] if isinstance(one, list) and one else one for one in value]
    if unlike := [one for one in found if not isinstance(one, str)]:
        raise ValueError(f"{str(unlike[0])[:32]} is no text")
    return found
