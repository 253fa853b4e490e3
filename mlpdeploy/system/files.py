"""Single files: read where they are regular ones, written whole or not at all.

What is read here may come from anybody: a pipe never makes the reader wait, a file that has no end is not read, and
JSON that is nested too deeply, or holds numbers and text that nothing can print, is refused.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlpdeploy.system.leftovers import temporary

LARGEST_DOCUMENT = 256 << 20
DEEPEST = 64
LARGEST_NUMBER = 2**63


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """A regular file to read. Raises OSError where there is none, or it is a pipe, a device or a folder."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    with os.fdopen(descriptor, "rb") as file:
        yield file


def read_text(path: Path, errors: str = "strict") -> str:
    """The text of a file. Raises OSError as `opened` does and where it is too long, ValueError where it is no text."""
    with opened(path) as file:
        content = file.read(LARGEST_DOCUMENT + 1)
    if len(content) > LARGEST_DOCUMENT:
        raise OSError(errno.EFBIG, f"it is longer than {LARGEST_DOCUMENT >> 20} MiB", str(path))
    return content.decode("utf-8", errors)


def read_json(path: Path) -> Any:
    """The JSON value in a file. Raises OSError as `read_text` does, ValueError where it cannot be used."""
    return parsed(read_text(path))


def parsed(text: str) -> Any:
    """The value of a JSON text. Raises ValueError where it is none, or holds what no document of ours does."""
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check(found, 0)
    return found


def sha256(path: Path) -> str:
    """The hash of a file, in hexadecimal. Raises OSError as `opened` does."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(path: Path, text: str) -> Path:
    """Write one file, whole or not at all. Raises OSError where it cannot be written."""
    with temporary(path) as made:
        made.write_text(text, encoding="utf-8")
        sync(made)
        made.replace(path)
    return path


def sync(path: Path) -> None:
    """See to it that a file's content, or a folder's names, are on the disk."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _check(value: Any, depth: int) -> None:
    """Raise ValueError for what Python reads in JSON and cannot print or compute with."""
    if depth > DEEPEST:
        raise ValueError("it is nested too deeply")
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError("it holds text that is no Unicode")
    elif isinstance(value, int | float):
        if not abs(value) < LARGEST_NUMBER:
            raise ValueError("it holds a number that is too large")
    elif isinstance(value, dict):
        for key, one in value.items():
            _check(key, depth)
            _check(one, depth + 1)
    elif isinstance(value, list):
        for one in value:
            _check(one, depth + 1)
