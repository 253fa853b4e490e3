"""While code of the user's runs, stdout is not its to write to: only results go there, with --json one document."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

STDOUT, STDERR = 1, 2


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
        # A stream of its own, which may be closed.
        with contextlib.ExitStack() as stack:
            if kept is not None:
                sys.stdout = stack.enter_context(open(os.dup(STDERR), "w", buffering=1, errors="backslashreplace"))
            yield
    finally:
        sys.stdout = ours
        if kept is not None:
            os.dup2(kept, STDOUT)
            os.close(kept)
