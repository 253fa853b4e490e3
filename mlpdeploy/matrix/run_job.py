"""One job from its commands to its row, each command a process of its own; it knows nothing of who asked for it.

What goes wrong with a command, its end by a signal included, is a step of the row.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from mlpdeploy.errors import GateFailed, MachineLacks
from mlpdeploy.evidence.documents.matrix import (
    BUILT,
    CACHED,
    CANCELLED,
    FAILED,
    PASSED,
    PENDING,
    SKIPPED,
    Row,
    Step,
)
from mlpdeploy.matrix.found import essentials, facts_of, stands
from mlpdeploy.matrix.job import BUILD, REGRESS, Asked, Job
from mlpdeploy.matrix.options import words
from mlpdeploy.selection.arguments import arguments
from mlpdeploy.system import files
from mlpdeploy.system.processes import Children, Ended
from mlpdeploy.system.text import plain

COMMAND = (sys.executable, "-m", "mlpdeploy")
LONGEST = 500
"""Characters of a message that a row keeps."""
ASKED_TO_END = tuple(
    128 + getattr(signal, name) for name in ("SIGHUP", "SIGINT", "SIGKILL", "SIGTERM") if hasattr(signal, name)
)
"""Exit codes of a command that ended in good order after a signal, as shells count them."""
UNEXPECTED = 70


@dataclass(frozen=True)
class Manner:
    """How a job's commands are run: how often one that was killed is tried again, and in which environment.

    `children` are the processes that end together, where somebody else may end them. `tell` hears which command begins,
    and in which attempt.
    """

    retries: int = 0
    environment: Mapping[str, str] | None = None
    children: Children = field(default_factory=Children)
    tell: Callable[[str, int], None] = lambda step, attempt: None
    command: Sequence[str] = field(default_factory=lambda: COMMAND)


def run_job(
    job: Job, log: Path, manner: Manner | None = None, *, names: Collection[str] | None = None, given: Row | None = None
) -> Row:
    """Run the commands of a job, their stderr to `log`: all, or those of these `names`, going on from the row `given`.

    Never raises for what a command does. The row stays pending where some commands are left to do. Where this thread is
    interrupted, the command that runs ends before the exception goes on.
    """
    manner, began = manner or Manner(), time.monotonic()
    row = given or replace(job.row(), worker=worker(), machine=machine_here(), log=str(log), attempts=1)
    for place, asked in enumerate(job.steps):
        if (names is None or asked.name in names) and row.steps[place].outcome == PENDING:
            row = _with(row, place, *_step(row, job, asked, log, manner))
    return replace(row, seconds=row.seconds + round(time.monotonic() - began, 3), facts=facts_of(row.steps))


def worker() -> str:
    """This process, in words."""
    return f"{socket.gethostname()}/{os.getpid()}"


@cache
def machine_here() -> dict[str, Any]:
    """The fingerprint of this machine."""
    from mlpdeploy.evidence.latency.machine import fingerprint

    return fingerprint()


def cancelled(row: Row) -> Row:
    """A row whose job ended with the run."""
    steps = tuple(replace(one, outcome=CANCELLED) if one.outcome == PENDING else one for one in row.steps)
    return replace(row, steps=steps, state=CANCELLED, error="ended with the run")


def _with(row: Row, place: int, step: Step, attempts: int, document: Mapping[str, Any]) -> Row:
    """The row after one more command."""
    rest = row.steps[place + 1 :]
    if step.outcome in (FAILED, CANCELLED):
        rest = tuple(replace(one, outcome=SKIPPED) for one in rest)
    steps = (*row.steps[:place], step, *rest)
    if step.name == BUILD and step.outcome in (PASSED, CACHED):
        manifest = document["manifest"]
        hashes = {name: str(file["sha256"]) for name, file in manifest["files"].items()}
        row = replace(row, key=manifest["key"], folder=document["folder"], files=hashes)
    error = row.error or (None if step.error is None else f"{step.name}: {step.error}")
    return replace(row, steps=steps, state=_state(steps), attempts=row.attempts + attempts - 1, error=error)


def _state(steps: Sequence[Step]) -> str:
    outcomes = [step.outcome for step in steps]
    worst = next((one for one in (FAILED, CANCELLED, PENDING) if one in outcomes), None)
    return worst or (CACHED if outcomes[0] == CACHED else BUILT)


def _step(row: Row, job: Job, asked: Asked, log: Path, manner: Manner) -> tuple[Step, int, Mapping[str, Any]]:
    """A command's step, how often it was tried, and its document."""
    began, attempt = time.monotonic(), 1
    command = [*manner.command, asked.name, *_words(row, job, asked), "--json"]
    environment = os.environ if manner.environment is None else manner.environment
    while True:
        manner.tell(asked.name, row.attempts + attempt - 1)
        step, document, again = _tried(asked, command, environment, log, manner.children)
        if step.outcome == PASSED and row.key is not None and not stands(row):
            step = replace(step, outcome=FAILED, error=f"another build has replaced {row.folder} meanwhile")
        if not again or attempt > manner.retries:
            return replace(step, seconds=round(time.monotonic() - began, 3)), attempt, document
        attempt += 1


def _words(row: Row, job: Job, asked: Asked) -> list[str]:
    """A command's arguments: what builds by the selection, what reads an artifact by its folder."""
    selection, out = job.selection, str(job.selection.out)
    own = words(asked.name, asked.options)
    if asked.name == BUILD and selection.quantised and "worth" not in asked.options:
        own += ["--no-worth"]
    if asked.name in (BUILD, REGRESS):
        told = selection.to_json() | {"out": out}
        if selection.timing_cache is not None:
            told["timing_cache"] = str(selection.timing_cache)
        if asked.name == REGRESS:  # where --batch are sizes to time
            del told["batch"]
        return [*arguments(asked.name, told), *own]
    return [str(row.folder), "--out", out, *own]


def _tried(
    asked: Asked, command: Sequence[str], environment: Mapping[str, str], log: Path, children: Children
) -> tuple[Step, Mapping[str, Any], bool]:
    """A command that was run once: its step, its document, and whether it may be worth another try."""
    step = Step(asked.name, dict(asked.options))
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ {shlex.join(command)}\n")
        code, stdout = children.run(command, environment, log)
    except Ended:
        return replace(step, outcome=CANCELLED, error="ended with the run"), {}, False
    except OSError as error:
        return replace(step, outcome=FAILED, error=f"cannot be run ({error.strerror or error})"), {}, False
    document = _document(stdout)
    found = _found(asked.name, document) if code in (0, GateFailed.exit_code) else None
    if found is None:
        told = _told(document, code)
        lacks = code in (MachineLacks.exit_code, UNEXPECTED) and "memory" in told.lower()
        return replace(step, outcome=FAILED, exit_code=code, error=told), {}, lacks or _killed(code)
    step = replace(step, exit_code=code, found=found)
    if code:
        return replace(step, outcome=FAILED, error=_one_line(found["verdict"])), document, False
    return replace(step, outcome=CACHED if found.get("cached") else PASSED), document, False


def _killed(code: int) -> bool:
    return code < 0 or code in ASKED_TO_END


def _found(command: str, document: Mapping[str, Any]) -> dict[str, Any] | None:
    """The essentials of a document; None where it is none of that command."""
    try:
        return essentials(command, document)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None


def _document(stdout: str) -> Mapping[str, Any]:
    try:
        found = files.parsed(stdout)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _told(document: Mapping[str, Any], code: int) -> str:
    """Why a command failed, in one line."""
    if _killed(code):
        number = -code if code < 0 else code - 128
        return f"ended by signal {number} ({_name(number)})"
    error = document.get("error")
    message = error.get("message") if isinstance(error, dict) else None
    return _one_line(message or f"it gave no result (exit code {code}): see the log")


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _one_line(text: object) -> str:
    line = plain(re.split(r"[\r\n]", str(text).strip(), maxsplit=1)[0])
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
