"""The three streams of a process: there even where it was started without, and stdout kept for results.

While code of the user's runs, stdout is not its to write to: only results go there, with --json one document.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import IO

STDOUT, STDERR = 1, 2
NAMES = ("stdin", "stdout", "stderr")


def require() -> None:
    """See to it that there are three streams, and that any text can be written to them.

    One that this process was started without leads nowhere: its descriptor would be that of the next file. What a
    stream's encoding has no place for is written as a question mark.
    """
    for number, name in enumerate(NAMES):
        if not _is_open(number):
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, number)
            if nowhere != number:
                os.close(nowhere)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def unheard(stream: IO[str]) -> None:
    """Let a stream lead nowhere, so that what it still holds does not fail once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextlib.contextmanager
def as_long_as_read() -> Iterator[None]:
    """Write to stdout; who reads it may leave at any time (`| head -1`), and that is no error."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        unheard(sys.stdout)


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Send what is printed to stderr, by the file descriptor too, and put stdout back however it was left.

    Nothing is printed on stdout by mlpdeploy itself meanwhile.
    """
    ours, kept = sys.stdout, None
    with contextlib.suppress(OSError, ValueError):  # a process may be started without either
        ours.flush()
        kept = os.dup(STDOUT)
        os.dup2(STDERR, STDOUT)
    try:
        with contextlib.ExitStack() as stack:
            if kept is not None:
                sys.stdout = stack.enter_context(_own())
            yield
    finally:
        sys.stdout = ours
        if kept is not None:
            os.dup2(kept, STDOUT)
            os.close(kept)


@contextlib.contextmanager
def _own() -> Iterator[IO[str]]:
    """A stream to stderr that may be closed: by itself, or by its descriptor."""
    stream = _to(STDERR)
    try:
        yield stream
    finally:
        with contextlib.suppress(OSError, ValueError):
            stream.close()


def _to(number: int) -> IO[str]:
    return open(os.dup(number), "w", buffering=1, errors="backslashreplace")


@contextlib.contextmanager
def kept_open() -> Iterator[None]:
    """Put stdout and stderr back where the body closed them: the streams, or their descriptors."""
    kept = dict[int, int]()
    with contextlib.suppress(OSError):
        for number in (STDOUT, STDERR):
            kept[number] = os.dup(number)
    try:
        yield
    finally:
        for number, before in kept.items():
            if not _is_open(number):
                os.dup2(before, number)
            os.close(before)
            if getattr(getattr(sys, NAMES[number]), "closed", False):
                setattr(sys, NAMES[number], _to(number))


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def end() -> None:
    """After the last result: what is printed now, by what the user's code left for the end of the process, is none."""
    with contextlib.suppress(OSError, ValueError):
        try:
            sys.stdout.flush()
        except OSError:  # it was said; Python would try once more, and tell by an exit code of its own
            unheard(sys.stdout)
        else:
            os.dup2(STDERR, STDOUT)
