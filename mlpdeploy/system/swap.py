"""One folder put in another's place, in one step where the system has such a step."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path

from mlpdeploy.system.files import sync

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def replace_folder(new: Path, target: Path) -> None:
    if not target.exists():
        new.rename(target)
    elif not exchange(new, target):
        target.rename(previous_of(target))
        new.rename(target)
        shutil.rmtree(previous_of(target))
    sync(target.parent)


def exchange(first: Path, second: Path) -> bool:
    """Swap two folders' names in one step; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV):
        return False
    raise OSError(code, os.strerror(code), str(second))


def previous_of(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.previous"
