"""Python's cyclic collector, kept out of measurements."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def settled() -> Iterator[None]:
    """Keep what lives already out of the collections before each measurement: looking at all of it takes longer than
    loading a small engine.
    """
    gc.collect()
    first = not _SETTLED and gc.get_freeze_count() == 0  # which counts all that is frozen, one by one
    _SETTLED.append(True)
    if first:
        gc.freeze()
    try:
        yield
    finally:
        _SETTLED.pop()
        if first:
            gc.unfreeze()


_SETTLED: list[bool] = []
"""As many as there are measurements around this one."""


@contextmanager
def no_collector() -> Iterator[None]:
    """Keep Python's cyclic collector out of the samples."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
