"""Engines and forked processes: a fork takes the memory of a process along, and none of the threads that compute in it.

An engine that was loaded waits for its threads there for ever, and so does one that is loaded after another has been:
what their libraries share believes that the threads are there. So a process that was forked from one that had used
engines is told so. What is pickled or spawned begins anew, and works.
"""

from __future__ import annotations

import os

from mlpdeploy.errors import InputError

_USED: set[int] = set()
"""Processes in which engines were built or loaded: this one, and those that it was forked from."""


def use() -> None:
    """Engines are used in this process from here on. Raises InputError where they cannot be."""
    require()
    _USED.add(os.getpid())


def require() -> None:
    """Raise InputError in a process that was forked from one that had used engines: it would wait for ever."""
    if inherited():
        raise InputError(
            "this process was forked from one that had used engines, whose threads do not come along: start it by "
            "multiprocessing.get_context('spawn'), or fork first and build or load engines there only"
        )


def inherited() -> bool:
    """Whether engines of another process lie in this one's memory."""
    return bool(_USED - {os.getpid()})
