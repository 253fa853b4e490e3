"""Other processes, and being asked to end: what was begun is undone, and no child is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

GRACE = 5.0
"""Seconds that a process has to undo what it began."""


def left_to_its_parent(*_: object) -> None:
    """Signals that reach all processes at once are the parent's to answer: a child of it goes on until it is told."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class Terminated(BaseException):
    """The process was asked to end; `exit_code` is what a shell reports for the signal."""

    def __init__(self, number: int, where: str = "") -> None:
        super().__init__(f"terminated{where}; the last good artifact is untouched")
        self.exit_code = 128 + number


@dataclass
class Interruption:
    """Where the user's own code was when the process was interrupted: ` in forward (nets.py, line 7)`, or empty."""

    where: str = ""


@contextmanager
def unwinding() -> Iterator[Interruption]:
    """Raise Terminated in the body where the process is asked to end, so that everything is cleared on the way out.

    A signal that something else handles, or that is ignored, stays as it is; another one soon after the first does not
    stop the clearing. An interruption from the keyboard raises KeyboardInterrupt as ever; what is yielded says where.
    """
    known = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    here = threading.current_thread() is threading.main_thread()
    taken = [number for number in known if here and signal.getsignal(number) is signal.SIG_DFL]
    asked = -GRACE

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        before, asked = asked, time.monotonic()
        if asked - before >= GRACE:
            raise Terminated(number, _users_line(frame))

    interruption = Interruption()

    def interrupt(number: int, frame: FrameType | None) -> None:
        interruption.where = interruption.where or _users_line(frame)
        signal.default_int_handler(number, frame)

    keyboard = here and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    for number in taken:
        signal.signal(number, end)
    if keyboard:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield interruption
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
        if keyboard:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _users_line(frame: FrameType | None) -> str:
    """The innermost line of the user's own code that runs, in words; empty where our own code runs."""
    while frame is not None and not frame.f_code.co_filename.startswith(_PACKAGE):
        file = frame.f_code.co_filename
        if not file.startswith((*_LIBRARIES, "<")):
            return f" in {frame.f_code.co_name} ({os.path.basename(file)}, line {frame.f_lineno})"
        frame = frame.f_back
    return ""


_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_LIBRARIES = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")})


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
            end(process, process.communicate)
            raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


class Ended(Exception):
    """A process was not run to its end, since all of them were to end."""


class Children:
    """Processes that threads of this one wait for, and that all end with the body: `with Children() as children`."""

    def __init__(self) -> None:
        self._lock, self._ended = threading.Lock(), False
        self._running: set[subprocess.Popen[str]] = set()

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def run(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> tuple[int, str]:
        """Run a command to its end, its stderr added to `log`: the exit code, negative for a signal, and its stdout.

        Raises Ended where all are to end, and OSError where the log cannot be written.
        """
        how: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {}
        with log.open("ab") as stderr:
            how |= {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": stderr, "text": True}
            with self._lock:
                if self._ended:
                    raise Ended
                process = subprocess.Popen(command, env=environment, errors="replace", **how)
                self._running.add(process)
            try:
                stdout, _ = process.communicate()
            except BaseException:
                end(process, process.communicate)
                raise
            finally:
                with self._lock:
                    self._running.discard(process)
        if self._ended:
            raise Ended
        return process.returncode, stdout

    def end(self) -> None:
        """Ask all that run to end, end those that do not, and start no other."""
        with self._lock:
            self._ended, running = True, [*self._running]
        for process in running:
            _send(process, signal.SIGTERM)
        last = time.monotonic() + GRACE
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, last - time.monotonic()))
            _send(process, _KILL)


_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)


def _send(process: subprocess.Popen[str], number: int) -> None:
    """Send a signal to a process and its children, as far as there are any."""
    with suppress(ProcessLookupError, PermissionError):
        if os.name == "posix":
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)


def end(process: subprocess.Popen[str], wait: Callable[..., Any]) -> None:
    """Ask a process and its children to end, and end those that do not; `wait` is how one waits for it, in seconds."""
    _send(process, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        wait(timeout=GRACE)
    _send(process, _KILL)
