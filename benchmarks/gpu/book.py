"""The results of one kind of GPU, written after each row: a run that is killed leaves what it measured."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import machine
from benchmarks.gpu.crew import Row, Task

OWN = ("commit", "code", "at_s", "clocks", "machine")
"""What the book adds to a row."""
SPENT = ("OutOfMemoryError", "out of memory", "ALLOC_FAILED")
"""What PyTorch, CUDA and its libraries say where there is no memory left, which a row's neighbours may have taken."""


RESULTS = Path(__file__).parents[1] / "results"


class Book:
    """The rows of a GPU by name; those that another machine measured name it where it differs."""

    def __init__(self, folder: Path, device: str, dry: bool, parts: Sequence[str], again: bool = False) -> None:
        """`again`: rows that other code measured are measured anew; they stay until then."""
        self.folder, self.parts, self.again = folder, parts, again
        self.commit, self.code = os.environ.get("MLPDEPLOY_COMMIT") or machine.commit(), machine.code()
        self.machine = machine.fingerprint(device)
        slug = "dry-run" if dry else re.sub(r"[^a-z0-9]+", "-", self.machine["gpu"].lower()).strip("-")
        self.path = folder / f"{slug}.json"
        self.results = self._earlier()
        self._began = time.monotonic()

    def _earlier(self) -> dict[str, Row]:
        places = [path for path in (self.path, RESULTS / self.path.name) if path.exists()]
        if not places:
            return {}
        document = json.loads(places[0].read_text(encoding="utf-8"))
        rows: dict[str, Row] = {}
        for name, row in document["results"].items():
            owner = row.pop("machine", document["machine"])
            rows[name] = row if owner == self.machine else row | {"machine": owner}
        return rows

    def known(self, task: Task) -> Row | None:
        """What is known of the row of a task, {} where it is nothing; None where it is not to be measured."""
        row = self.results.get(task.name)
        if task.part not in self.parts:
            return None
        if row is None or not self._stands(row):
            return {}
        if not row.get("left") or ("ended" in row and "trying" not in row):
            return None
        if task.enough is not None and row.get("tried", 0) >= task.enough:
            return None
        return {key: value for key, value in row.items() if key not in OWN}

    def _stands(self, row: Row) -> bool:
        """Whether a row need not be begun anew: it is of a machine like this, and of this code where it matters."""
        if not machine.same(row.get("machine", self.machine), self.machine):
            return False
        if row.get("code") == self.code:
            return not any(word in row.get("failed", "") for word in SPENT)
        return not (self.again or row.get("left") or "failed" in row or row.get("passed") is False)

    def add(self, task: Task, row: Row) -> None:
        """Write a row that has grown. What failed behind its last growth is told beside it."""
        try:
            json.dumps(row, allow_nan=False)
        except ValueError as error:
            row = {"failed": f"{type(error).__name__}: {error}"}
        if "failed" in row:
            row = {"failed": " ".join(str(row["failed"]).split())[:300]}
            before = self.results.get(task.name)
            if before and before.get("left") and before.get("code") == self.code:
                row = {key: value for key, value in before.items() if key not in OWN} | {"ended": row["failed"]}
        spent = round(time.monotonic() - self._began, 1)
        clocks = None if "trying" in row else machine.clocks()  # which takes a while
        own = {"commit": self.commit, "code": self.code, "at_s": spent, "clocks": clocks}
        self.results[task.name] = row | own
        told = row.get("failed") or row.get("ended") or (f"{len(row['left'])} left" if row.get("left") else "done")
        if "trying" not in row or "ended" in row:
            print(f"{spent:6.1f} s  {task.name}: {told}", flush=True)
        self.write()

    def write(self) -> None:
        """The document and its tables, each in one step."""
        from benchmarks.gpu.report import markdown

        self.folder.mkdir(parents=True, exist_ok=True)
        document: dict[str, Any] = {
            "benchmark": "gpu",
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "machine": self.machine,
            "results": self.results,
        }
        texts = {
            self.path: json.dumps(document, indent=2, allow_nan=False) + "\n",
            self.path.with_suffix(".md"): markdown(document),
        }
        for path, text in texts.items():
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
