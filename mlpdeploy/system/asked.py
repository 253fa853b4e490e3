"""Another process that is asked and answers, a line of JSON each way, for as long as the one that asks wants it."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any

from mlpdeploy.system import processes
from mlpdeploy.system.leftovers import for_a_while
from mlpdeploy.system.processes import end

MOST = 1000
"""Lines without an answer among them before a process counts as one that does not answer."""
LONGEST = 1 << 20
"""Characters of a line."""


class NoAnswer(Exception):
    """Why there is no answer, in words that follow "the process": `ended with exit code 1 (No module named json)`."""


class Asked:
    """A process that was started; its answers begin with a word that it was told."""

    def __init__(self, process: subprocess.Popen[str], word: str, said: IO[bytes]) -> None:
        """`said` is the file that its stderr goes to."""
        self._process, self._word, self._said = process, f"{word} ", said
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._others, self._last = 0, ""
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, question: Mapping[str, Any], patience: float) -> dict[str, Any]:
        """The answer. Raises NoAnswer where none comes within `patience` seconds, or none will."""
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended: what it said last tells why
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        try:
            answer = self._answers.get(timeout=patience)
        except queue.Empty:
            raise NoAnswer(f"did not answer within {patience:g} s") from None
        if answer is None:
            self._answers.put(None)
            raise NoAnswer(self._over())
        return self._parsed(answer)

    def _read(self) -> None:
        """Keep the answers, and of other lines the last; None behind the last answer that there will be."""
        assert self._process.stdout is not None
        with suppress(OSError, ValueError):
            while self._others < MOST and (line := self._process.stdout.readline(LONGEST)):
                if line.startswith(self._word):
                    self._others = 0
                    self._answers.put(line.removeprefix(self._word))
                else:
                    self._others += 1
                    self._last = line.strip() or self._last
        self._answers.put(None)

    def _parsed(self, text: str) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise NoAnswer(f"gave an answer that is none ({_short(text.strip())})")
        return found

    def _over(self) -> str:
        """Why no more answers will come, with the last line that it said: on stderr, or else on stdout."""
        if self._others == MOST:
            return f"printed something else than answers ({_short(self._last)})"
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(processes.GRACE)
        self._said.seek(0)
        lines = [line for line in self._said.read().decode(errors="replace").splitlines() if line.strip()]
        code = self._process.returncode
        how = f"ended with exit code {code}" if code is not None else "closed its stdout"
        how = f"was ended by signal {-code}" if code is not None and code < 0 else how
        last = (lines or [self._last])[-1].strip()
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
                process.wait(processes.GRACE)
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
