"""A command that ends with whoever started it, however that ended: `python tied.py PARENT COMMAND...`.

It waits for the command and leaves with its exit code, or by its signal. Once the process PARENT is its parent no more,
it asks all processes of its group to end, and ends those that do not. It is run as a file and imports nothing of
mlpdeploy, so that it costs what Python alone does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

LOOK, GRACE = 0.25, 5.0
"""Seconds between two looks at the parent, and those that the command has to undo what it began."""


def main(parent: int, command: list[str]) -> int:
    """Run a command to its end, or to the parent's: its exit code, negative for a signal."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # they reach the command too; what is ignored would be ignored there
    process = subprocess.Popen(command)
    while True:
        try:
            return process.wait(LOOK)
        except subprocess.TimeoutExpired:
            if os.getppid() != parent:
                break
    os.killpg(0, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    os.killpg(0, signal.SIGKILL)
    return 1


if __name__ == "__main__":
    code = main(int(sys.argv[1]), sys.argv[2:])
    if code < 0:
        with contextlib.suppress(OSError):  # nothing can be done about SIGKILL, which needs nothing done
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
