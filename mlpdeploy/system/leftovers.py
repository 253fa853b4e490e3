"""Temporary folders and files: each is held by a lock while its run lives, so a later run knows which ones are dead."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlpdeploy.errors import InputError

try:
    import fcntl
except ImportError:  # Windows, where nothing that is open can be removed
    fcntl = None  # type: ignore[assignment]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a system says where a disk takes no more."""
PREFIX = "mlpdeploy-baseline-"
_LOCK = ".held"
_LONG = 3600.0
"""Seconds after which a folder that nobody has taken hold of is dead: its run was killed between two steps."""


@contextmanager
def workplace() -> Iterator[Path]:
    """A temporary folder that goes away behind the body; first those go that runs left which were killed."""
    from filelock import FileLock

    with for_a_while():
        for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            if is_dead(folder):
                shutil.rmtree(folder, ignore_errors=True)
    with temporary_folder(PREFIX) as made, FileLock(made / _LOCK):
        yield made


@contextmanager
def temporary_folder(prefix: str = "mlpdeploy-") -> Iterator[Path]:
    """A folder that goes away with the body. Raises InputError where it cannot be made, or its disk gets full."""
    with for_a_while():
        made = tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)
    with made as folder:
        try:
            yield Path(folder)
        except OSError as error:
            if error.errno not in FULL or not str(error.filename or folder).startswith(folder):
                raise
            raise no_room(error) from error


@contextmanager
def for_a_while() -> Iterator[None]:
    """Turn the errors of making a temporary file or folder into one line."""
    try:
        yield
    except OSError as error:
        raise no_room(error) from error


def lies_in_temporary(path: Path) -> bool:
    """Whether a path lies in a folder that `temporary_folder` made."""
    made = Path(tempfile.gettempdir())
    return any(one.parent == made and one.name.startswith("mlpdeploy-") for one in path.parents)


def no_room(error: OSError) -> InputError:
    """What to say where temporary files cannot be written."""
    reason = error.strerror or str(error)
    try:
        where = tempfile.gettempdir()
    except OSError:
        where = "any of the usual folders"
    if error.errno in FULL:
        return InputError(
            f"no space is left for temporary files in {where} ({reason}): free some, or set TMPDIR to a folder that "
            "has room"
        )
    return InputError(f"{where} takes no temporary files ({reason}): set TMPDIR to a folder that can be written")


def is_dead(folder: Path) -> bool:
    """Whether nobody works in a folder of `workplace` any more; where that cannot be told, somebody does."""
    from filelock import FileLock, Timeout

    try:
        found = folder.lstat()
        # What another user put there is not to be followed.
        if not stat.S_ISDIR(found.st_mode) or (os.name == "posix" and found.st_uid != os.getuid()):
            return False
        if not (folder / _LOCK).exists():
            return time.time() - found.st_mtime > _LONG
        with FileLock(folder / _LOCK, timeout=0):
            return True
    except FileNotFoundError:
        return True
    except (OSError, Timeout):
        return False


@contextmanager
def temporary(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """A file, or a folder, beside `path` that is to take its place; where it does not, it goes away behind the body.

    First those go that writers of `path` left which were killed. Raises OSError.
    """
    clear(path.parent, path.name)
    descriptor, made = _held(path, folder)
    try:
        yield made
    finally:
        if descriptor is not None:
            os.close(descriptor)
        if folder:
            shutil.rmtree(made, ignore_errors=True)
        else:
            made.unlink(missing_ok=True)


def clear(folder: Path, name: str | None = None) -> None:
    """Remove what killed writers of a file or folder left beside it; of any where none is named."""
    pattern = re.compile(rf"\.{'.+' if name is None else re.escape(name)}\.[0-9a-f]{{32}}")
    for left in folder.glob(".*"):
        if pattern.fullmatch(left.name):
            with suppress(OSError):
                _remove_dead(left)


def _held(path: Path, folder: bool) -> tuple[int | None, Path]:
    """A new file or folder beside `path`, open and locked; another one where it was taken for a dead writer's before.

    Where a system has no such locks, a folder is not open.
    """
    while True:
        made = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        if folder:
            made.mkdir()
            if fcntl is None:
                return None, made
        try:
            descriptor = os.open(made, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileNotFoundError:
            if folder:
                continue
            raise
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        if made.exists():
            return descriptor, made
        os.close(descriptor)


def _remove_dead(left: Path) -> None:
    """Remove a file or folder that no writer holds. Raises OSError where one does."""
    kind = left.lstat().st_mode
    if fcntl is None or not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        return
    descriptor = os.open(left, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if stat.S_ISDIR(kind):
            shutil.rmtree(left)
        else:
            left.unlink()
    finally:
        os.close(descriptor)
