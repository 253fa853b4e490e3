"""One thread at a time: torch.export changes classes and modes that all threads of a process share."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_lock = threading.RLock()


def _after_fork() -> None:
    """A child has no other thread that could give the lock back."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def turn() -> Iterator[None]:
    """Wait until no other thread of this process traces, exports or runs a network for us."""
    with _lock:
        yield


def in_turn(function: Callable[P, T]) -> Callable[P, T]:
    """A function whose calls take turns with all others that are made so."""

    @functools.wraps(function)
    def waiting(*args: P.args, **kwargs: P.kwargs) -> T:
        with turn():
            return function(*args, **kwargs)

    return waiting
