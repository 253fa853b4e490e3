"""Folders that are written whole or not at all, and never over what is there."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlpdeploy.errors import InputError
from mlpdeploy.system.files import sync
from mlpdeploy.system.leftovers import temporary


def require_new(folder: Path) -> None:
    """Raises InputError where there is something already, where nobody can tell, or where no folder can be made."""
    above = next((one for one in folder.absolute().parents if os.path.lexists(one)), Path("/"))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: cannot be written (no folder can be made in {above})")
    try:
        taken = folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir())))
    except OSError as error:
        raise _unwritable(folder, error) from error
    if taken:
        raise InputError(f"{folder} is there already: give a folder that is new or empty")


class Taken(InputError):
    """Something lies where a folder was to, since it was looked for last."""


@contextmanager
def in_one_step(folder: Path, drafts: Callable[[Path], Path] = lambda above: above) -> Iterator[Path]:
    """A folder that takes the place of `folder` when the body ends well.

    Until then it lies where `drafts` says for the folder above it, which is made where there is none. Raises
    InputError where that cannot be, Taken where something that is not empty lies there by now.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary(drafts(folder.parent) / folder.name, folder=True) as draft:
            yield draft
            for path in (*draft.rglob("*"), draft):
                sync(path)
            _rename(draft, folder)
            sync(folder.parent)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _rename(draft: Path, folder: Path) -> None:
    try:
        os.replace(draft, folder)  # which takes the place of nothing but an empty folder
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise Taken(f"{folder} is there by now: give a folder that is new or empty") from error
        raise


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(f"{folder}: cannot be written ({error.strerror or error})")
