"""Other processes, and being asked to end: what was begun is undone, and no child is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

GRACE = 5.0
"""Seconds that a process has to undo what it began."""


class Terminated(BaseException):
    """The process was asked to end; `exit_code` is what a shell reports for the signal."""

    def __init__(self, number: int) -> None:
        super().__init__("terminated; the last good artifact is untouched")
        self.exit_code = 128 + number


@contextmanager
def unwinding() -> Iterator[None]:
    """Raise Terminated in the body where the process is asked to end, so that everything is cleared on the way out.

    A signal that something else handles, or that is ignored, stays as it is; another one soon after the first does not
    stop the clearing.
    """
    known = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    here = threading.current_thread() is threading.main_thread()
    taken = [number for number in known if here and signal.getsignal(number) is signal.SIG_DFL]
    asked = -GRACE

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        before, asked = asked, time.monotonic()
        if asked - before >= GRACE:
            raise Terminated(number)

    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def run(
    command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, its output as text; where this process is interrupted, it and its children end too."""
    how: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {}
    how |= {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=folder, env=environment, text=True, **how) as process:
        try:
            stdout, stderr = process.communicate()
        except BaseException:
            _end(process)
            raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def _end(process: subprocess.Popen[str]) -> None:
    """Ask a process and its children to end, and end those that do not."""
    send = os.killpg if os.name == "posix" else lambda pid, number: process.send_signal(number)
    with suppress(ProcessLookupError, PermissionError):
        send(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=GRACE)
        send(process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
