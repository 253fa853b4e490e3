"""The command line on this GPU: build, verify, bench, regress, report, each in a process as a user starts it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.crew import ONE_CORE, Row, ending
from benchmarks.gpu.machine import ROOT
from mlpdeploy import kernels

PROGRAM = (sys.executable, "-m", "mlpdeploy")
LIMIT = 240.0
"""Seconds that a command may take."""
CACHE = "cache"
NOT_RUN = {"failed": "not run: nothing was built"}


@dataclass(frozen=True)
class Case:
    """An engine, as options name it, and what it is timed beside."""

    name: str
    options: tuple[str, ...]
    """Of the engine and the network."""
    batch: int
    against: str
    seconds: float
    """Of timing."""


def measure(known: Row, case: Case, program: Sequence[str] = PROGRAM, limit: float = LIMIT) -> Iterator[Row]:
    """One row that grows by a command: how it ended, after how many seconds, and what it found."""
    row: Row = {"commands": {}, "left": ["build", "verify", "bench", "regress", "report"]}
    with tempfile.TemporaryDirectory() as folder:
        _choices(Path(folder))
        for command in [*row["left"]]:
            built = row["commands"].get("build", {"exit": 0})
            told = run(program, command, case, Path(folder), limit) if built.get("exit") == 0 else NOT_RUN
            row["commands"][command] = told
            row["left"] = row["left"][1:]
            yield row


def _choices(folder: Path) -> None:
    """A cache of its own, with what was measured of our kernels until now.

    A build measures beside processes that use the GPU: that is no choice for others, or for the file that is shipped.
    """
    tuning: Any = kernels.load("common.tuning")
    (folder / CACHE / "mlpdeploy").mkdir(parents=True)
    for path in tuning.folder().glob("kernels-*.jsonl"):
        shutil.copy(path, folder / CACHE / "mlpdeploy")


def run(program: Sequence[str], command: str, case: Case, folder: Path, limit: float) -> Row:
    """One command in its own process: its exit code or signal, seconds, and what it found, or said last."""
    began = time.monotonic()
    with open(folder / f"{command}.out", "w+") as out, open(folder / f"{command}.err", "w+") as err:
        line = [*program, command, case.name, *arguments(command, case, folder), "--json"]
        usual = {name: value for name, value in os.environ.items() if name not in ONE_CORE}
        usual |= {"XDG_CACHE_HOME": str(folder / CACHE)}
        with subprocess.Popen(line, cwd=ROOT, env=usual, stdin=subprocess.DEVNULL, stdout=out, stderr=err) as process:
            try:
                code: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                process.kill()
                code = None
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read())
    row: Row = {"exit": code, "seconds": round(time.monotonic() - began, 1)}
    if code is None:
        return row | {"failed": f"took longer than {limit:.0f} s{_last(texts[1])}"}
    found: Row = {}
    try:
        found = FOUND[command](json.loads(texts[0]))
    except Exception as error:  # a document that lacks what it should have is this command's failure
        if code == 0:
            return row | {"failed": f"its document: {type(error).__name__}: {error}"[:300]}
    return row | found | ({"failed": f"{ending(code)}{_last(texts[1])}"} if code else {})


def arguments(command: str, case: Case, folder: Path) -> list[str]:
    """Of a command, behind the network's name."""
    saved, timed = str(folder / "saved.json"), ["--batch", str(case.batch), "--time", str(case.seconds)]
    kept = ["--out", str(folder / "artifacts")]
    if command == "report":
        return kept
    given = {
        "build": [],
        "verify": ["--quick"],
        "bench": [*timed, "--against", case.against, "--save", saved],
        "regress": [*timed, "--baseline", saved, "--undecided", "pass"],
    }
    return [*case.options, *kept, *given[command]]


def _last(text: str) -> str:
    lines = text.split("\n")
    said = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {said[-200:]}" if said else ""


def _built(document: Any) -> Row:
    facts = document["manifest"]["facts"]
    return {key: facts[key] for key in ("build_seconds", "engine_bytes", "device", "executed") if key in facts}


def _verified(document: Any) -> Row:
    return {"verdict": document["verdict"], "first_failed": document["first_failed"]}


def _timed(document: Any) -> Row:
    ratios = {
        ratio["baseline"]: {key: ratio[key] for key in ("value", "low", "high", "verdict")}
        for measured in document["measurements"]
        for contender in measured["contenders"]
        for ratio in contender["ratios"]
        if contender["name"] == "engine"
    }
    return {"ratios": ratios}


def _held(document: Any) -> Row:
    return {"verdict": document["verdict"]}


def _reported(document: Any) -> Row:
    return {"bytes": {Path(file).suffix: Path(file).stat().st_size for file in document["files"]}}


FOUND: dict[str, Callable[[Any], Row]] = {
    "build": _built, "verify": _verified, "bench": _timed, "regress": _held, "report": _reported,
}  # fmt: skip
"""What a row keeps of each command's document."""
