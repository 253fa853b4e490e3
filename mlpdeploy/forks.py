"""Engines and forked processes: a fork takes the memory of a process along, and none of the threads that work in it.

An engine that has been loaded waits for its threads there for ever, and so does one that is loaded after another has
been: what their libraries share believes that the threads are there. So a process that was forked from one that had
used engines is told so. What is pickled or spawned begins anew, and works.
"""

from __future__ import annotations

import os
import sys

from mlpdeploy.errors import InputError


class _Past:
    """What this process has used, and what the processes that it was forked from had: engines, PyTorch."""

    used = False
    behind: frozenset[str] = frozenset()


def use(needs: str | None = None) -> None:
    """Engines are used in this process from here on; `needs` is another library that computes in them.

    Raises InputError where a process that this one was forked from had used engines, or had that library.
    """
    left = _Past.behind & {"engines", needs}
    if left:
        what = "had used engines" if "engines" in left else f"had imported {needs}"
        raise InputError(
            f"this process was forked from one that {what}, whose threads do not come along: start it by "
            "multiprocessing.get_context('spawn'), or fork first and build or load engines there only"
        )
    _Past.used = True


def _forked() -> None:
    found = {"engines"} if _Past.used else set()
    found |= {"torch"} if "torch" in sys.modules else set()
    _Past.used, _Past.behind = False, _Past.behind | found


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
