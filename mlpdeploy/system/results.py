"""Files of results: there is room for them before anything is measured, and each is written whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from mlpdeploy.errors import InputError
from mlpdeploy.system import files

ROOM = 1 << 20
"""Bytes that a disk must have left for a result."""


def require_room(*paths: Path | None) -> None:
    """Raise InputError, one line, where one of these files could not be written: before its content costs minutes."""
    for path in paths:
        if path is not None:
            _require(path)


def write(path: Path, text: str, append: bool = False) -> None:
    """Write a file, or add to it, whole or not at all; folders are made. Raises InputError where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if append:
            add(path, text)
        elif path.exists() and (not path.is_file() or not os.access(path.parent, os.W_OK)):
            path.write_text(text, encoding="utf-8")
        else:
            files.write(path.resolve(), text)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def add(path: Path, text: str) -> None:
    """Add to the end of a file, in one write; where that fails the file is as it was. Raises OSError."""
    data = text.encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        before = os.fstat(descriptor).st_size if path.is_file() else None
        try:
            if os.write(descriptor, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if before is not None:
                os.fsync(descriptor)
        except OSError:
            if before is not None:
                os.ftruncate(descriptor, before)
            raise
    finally:
        os.close(descriptor)


def _require(path: Path) -> None:
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists() and not path.is_file():  # a terminal or a pipe
            return
        if path.exists():
            path.open("r+b").close()
        try:
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(bytes(ROOM))
                probe.flush()
                os.fsync(probe.fileno())
        except PermissionError:
            if not path.exists():
                raise
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: cannot be written ({reason}); nothing was measured yet") from error
