"""A command that ends with whoever started it, however that ended: `python tied.py PARENT COMMAND...`.

    PARENT - this process - COMMAND, and what it starts, in one process group
             watcher: a process by itself, which ends the group where this process is killed or PARENT is gone

What kills the children of a dying process would miss the command, and leave it running. This is run as a file, and
imports nothing of mlpdeploy, so that it costs what Python alone does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

LOOK, GRACE = 0.25, 5.0
"""Seconds between two looks at the parent, and those that the command has to undo what it began."""
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


def main(parent: int, command: list[str]) -> int:
    """Run a command to its end, or to the parent's: its exit code, negative for a signal."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    held = _watched(os.getpgrp())
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)  # they reach the command too; what is ignored would be ignored there
    process = subprocess.Popen(command)
    while os.getppid() == parent:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(LOOK)
            os.write(held, b"ended")
            return code
    os._exit(1)


def _watched(group: int) -> int:
    """Start the watcher of a process group; what is given must be written to before this process ends in good order."""
    heard, held = os.pipe()
    if (child := os.fork()) == 0:
        os.setsid()
        if os.fork() == 0:
            _watch(group, heard, held)
        os._exit(0)
    os.waitpid(child, 0)
    os.close(heard)
    return held


def _watch(group: int, heard: int, held: int) -> None:
    """Wait for the end of who holds the other end of a pipe, and end the group where it was not in good order."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(held)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if not os.read(heard, 1):
            os.killpg(group, signal.SIGTERM)
            last = time.monotonic() + GRACE
            while time.monotonic() < last:
                time.sleep(LOOK)
                os.killpg(group, 0)  # raises once it is empty
            os.killpg(group, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    code = main(int(sys.argv[1]), sys.argv[2:])
    if code < 0:
        with contextlib.suppress(OSError):  # nothing can be done about SIGKILL, which needs nothing done
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
