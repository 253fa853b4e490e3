"""Another process that is asked and answers, a line of JSON each way, for as long as the one that asks wants it."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any

from mlpdeploy.system.leftovers import for_a_while
from mlpdeploy.system.processes import GRACE, end

MOST = 1000
"""Lines that are no answers, of what else a process prints, before it counts as one that does not answer."""
LONGEST = 1 << 20
"""Characters of a line."""


class NoAnswer(Exception):
    """Why there is no answer, in words that follow "the process": `ended with exit code 1 (No module named json)`."""


class Asked:
    """A process that was started; its answers begin with a word that it was told."""

    def __init__(self, process: subprocess.Popen[str], word: str, said: IO[bytes]) -> None:
        """`said` is the file that its stderr goes to."""
        self._process, self._word, self._said = process, f"{word} ", said
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, question: Mapping[str, Any], patience: float) -> dict[str, Any]:
        """The answer. Raises NoAnswer where none comes within `patience` seconds, or none will."""
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended: what it said last tells why
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        until, other = time.monotonic() + patience, ""
        for _ in range(MOST):
            try:
                line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise NoAnswer(f"did not answer within {patience:g} s") from None
            if not line:
                raise NoAnswer(self._ended(other))
            if line.startswith(self._word):
                return self._parsed(line.removeprefix(self._word))
            other = line.strip() or other
        raise NoAnswer(f"printed something else than answers ({_short(other)})")

    def _read(self) -> None:
        """Pass on line by line; at the end an empty one."""
        assert self._process.stdout is not None
        with suppress(OSError, ValueError):
            while line := self._process.stdout.readline(LONGEST):
                self._lines.put(line)
        self._lines.put("")

    def _parsed(self, text: str) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise NoAnswer(f"gave an answer that is none ({_short(text.strip())})")
        return found

    def _ended(self, other: str) -> str:
        """With the last line that it said on stderr, or else on stdout."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE)
        self._said.seek(0)
        lines = [line for line in self._said.read().decode(errors="replace").splitlines() if line.strip()]
        code = self._process.returncode
        how = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        last = (lines or [other])[-1].strip()
        return f"{how} ({_short(last)})" if last else how


@contextmanager
def asked(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[Asked]:
    """A process of `command` and a word of its own behind it, which ends with the body, however that does.

    It is in a process group of its own: what the keyboard ends is this process, and this ends that one. Where this
    process is killed, the other one finds its stdin closed. Raises OSError where there is no such program.
    """
    word = uuid.uuid4().hex
    how: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {}
    how |= {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8", "errors": "replace"}
    with for_a_while():
        said = tempfile.TemporaryFile()  # noqa: SIM115 (the errors of the body are others)
    with said, subprocess.Popen([*command, word], env=environment, stderr=said, **how) as process:
        try:
            yield Asked(process, word, said)
            _close(process)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            _close(process)
            end(process, process.wait)


def _close(process: subprocess.Popen[str]) -> None:
    """Let it know that nothing more will be asked."""
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.close()


def _short(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
