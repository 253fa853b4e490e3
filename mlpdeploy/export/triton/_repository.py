"""A model in a repository: its first version comes with the configuration, each other one must fit that."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from mlpdeploy.errors import InputError
from mlpdeploy.export.folders import Taken, in_one_step
from mlpdeploy.export.triton._config import CONFIG, LABELS, Served, require_same, text
from mlpdeploy.system.files import read_text


def added(repository: Path, served: Served, labels: str | None, write: Callable[[Path], None]) -> int:
    """Have the files of a version written, where nothing of them is seen before all is there; its number.

    Another export may add a version meanwhile: then this is the next one. Raises InputError where the model that is
    there serves something else, or where nothing can be written.
    """
    repository = Path(os.path.abspath(repository))
    while True:
        try:
            if os.path.lexists(repository / served.name):
                return _next(repository / served.name, served, labels, write)
            return _first(repository, served, labels, write)
        except Taken:
            continue


def _first(repository: Path, served: Served, labels: str | None, write: Callable[[Path], None]) -> int:
    configuration = text(served)
    with in_one_step(repository / served.name, _drafts) as draft:
        (draft / "1").mkdir()
        write(draft / "1")
        (draft / CONFIG).write_text(configuration, encoding="utf-8")
        if labels is not None:
            (draft / LABELS).write_text(labels, encoding="utf-8")
    return 1


def _next(model: Path, served: Served, labels: str | None, write: Callable[[Path], None]) -> int:
    require_same(model / CONFIG, served)
    if labels is not None and labels != _text(model / LABELS):
        raise InputError(f"{model / LABELS} has other labels: give another --model-name")
    numbers = [int(path.name) for path in model.iterdir() if path.name.isascii() and path.name.isdecimal()]
    version = max(numbers, default=0) + 1
    with in_one_step(model / str(version)) as draft:
        write(draft)
    return version


def _text(path: Path) -> str | None:
    try:
        return read_text(path)
    except (OSError, ValueError):
        return None


def _drafts(repository: Path) -> Path:
    """Where the draft of a model lies: Triton takes every folder of a repository for a model, so beside it.

    In it only where it is a disk of its own, or where nothing can be written beside it.
    """
    beside = repository.parent
    same = beside.stat().st_dev == repository.stat().st_dev
    return beside if same and os.access(beside, os.W_OK | os.X_OK) else repository
