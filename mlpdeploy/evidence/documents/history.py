"""The history of a network's measurements: JSON Lines, one run a line, and its trend as text and as SVG.

A line is appended in one write under a lock, so two runs never mix and a run that is killed leaves at most a truncated
last line; that one is skipped and named when the history is read, and the next run begins a line of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from mlpdeploy.errors import InputError
from mlpdeploy.evidence.documents.bench import BENCH
from mlpdeploy.evidence.latency.machine import computed_on
from mlpdeploy.system import files
from mlpdeploy.system.results import add
from mlpdeploy.system.text import plain

SCHEMA = 1
FILE = "history.jsonl"

_MOST = 1e12
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class TrendPoint:
    """One run at one batch size. `ratio` is candidate over baseline where the run had one; `machine` is its CPU or GPU.

    `comparable` says whether the machine's whole fingerprint is that of the run before.
    """

    created: str
    revision: str
    median_ms: float
    ratio: float | None
    verdict: str
    machine: str
    comparable: bool


@dataclass(frozen=True)
class Series:
    """The runs of one precision, backend, batch size and number of threads, oldest first."""

    precision: str
    backend: str
    batch: int
    threads: int
    points: tuple[TrendPoint, ...]

    @property
    def label(self) -> str:
        """What the series is of: `fp32 openvino, batch 8, 2 threads`."""
        return f"{self.precision} {self.backend}, batch {self.batch}, {self.threads} thread{'s'[: self.threads > 1]}"


@dataclass(frozen=True)
class History:
    """The series of a network, and the lines that could not be read."""

    name: str
    path: Path
    series: tuple[Series, ...]
    skipped: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON values."""
        return {**asdict(self), "path": str(self.path)}


def entry(document: Mapping[str, Any], revision: str | None = None) -> dict[str, Any]:
    """What the history keeps of a document of bench or regress."""
    network, bench = document["network"], document["kind"] == BENCH
    gates = {gate["batch"]: gate for gate in document.get("gates", ()) if gate["batch"] is not None}
    batches = {}
    for one in document["measurements"]:
        medians = one["contenders"][0]["medians_ms"] if bench else one["medians_ms"]
        change = gates.get(one["batch"], {}).get("change")
        ratio = None if change is None else 1 + change
        batches[str(one["batch"])] = {"median_ms": median(medians), "ratio": ratio}
    return {
        "schema": SCHEMA,
        "kind": document["kind"],
        "created": document["created"],
        "revision": revision,
        "name": network["name"],
        "precision": network["precision"],
        "backend": network["backend"],
        "device": network.get("device"),
        "threads": document["settings"]["threads"],
        "machine": document["machine"],
        "baseline": document.get("baseline", {}).get("reference"),
        "verdict": document.get("verdict"),
        "batches": batches,
        "facts": {key: value for key, value in document["facts"].items() if key != "reasons"},
    }


def append(path: Path, values: Mapping[str, Any]) -> None:
    """Add one line. Raises InputError where the file cannot be written."""
    from filelock import FileLock

    line = json.dumps(values, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            whole = not path.exists() or path.stat().st_size == 0 or _last_byte(path) == b"\n"
            add(path, line if whole else f"\n{line}")
    except OSError as error:
        raise InputError(f"{path}: the history cannot be written ({error.strerror or error})") from error


def read(path: Path, name: str) -> History:
    """The history in a file. Raises InputError where there is none, or nothing in it can be read."""
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: is no regular file, so no history")
        lines = files.read_text(path, errors="replace").splitlines()
    except OSError as error:
        raise InputError(
            f"{path}: there is no history ({error.strerror or error}); `mlpdeploy bench {name}` begins one"
        ) from error
    entries, skipped = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        problem = _problem(line)
        if problem is None:
            entries.append(json.loads(line))
        else:
            skipped.append(f"{path}, line {number}: {problem}; skipped")
    if not entries:
        raise InputError(skipped[0] if skipped else f"{path}: is empty")
    return History(name, path, _series(entries), tuple(skipped))


def sparkline(values: Sequence[float]) -> str:
    """One bar a value, from the smallest to the largest."""
    low, high = min(values), max(values)
    steps = len(_BARS) - 1
    return "".join(_BARS[round(steps * (value - low) / (high - low)) if high > low else 0] for value in values)


def svg(history: History) -> str:
    """The trend as one SVG picture, a panel for each series; the same history gives the same picture."""
    import io

    import matplotlib
    from matplotlib.figure import Figure

    count = len(history.series)
    look: Any = {"svg.hashsalt": "mlpdeploy", "font.family": "DejaVu Sans", "font.size": 9, "text.parse_math": False}
    with matplotlib.rc_context(look):
        figure = Figure(figsize=(8, 0.6 + 2.0 * count), layout="constrained")
        figure.suptitle(f"{plain(history.name)}: median latency", fontsize=11)
        for axes, series in zip(figure.subplots(count, 1, squeeze=False)[:, 0], history.series, strict=True):
            _draw(axes, series)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def revision_here() -> str | None:
    """The commit of the current folder's repository, abridged, with a plus where files differ from it."""
    try:
        command = ["git", "describe", "--always", "--dirty=+", "--exclude=*", "--abbrev=10"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None


def _draw(axes: Any, series: Series) -> None:
    """One panel: dots joined where the machine stayed the same, red where a run regressed."""
    points, start = series.points, 0
    for end in [*(i for i, point in enumerate(points) if i and not point.comparable), len(points)]:
        axes.plot(range(start, end), [p.median_ms for p in points[start:end]], "-", color="#4477aa", linewidth=1.2)
        start = end
    colors = ["#cc3311" if point.verdict == "regressed" else "#4477aa" for point in points]
    axes.scatter(range(len(points)), [point.median_ms for point in points], color=colors, s=18, zorder=3)
    shown = range(0, len(points), max(1, -(-len(points) // 8)))
    axes.set_xticks(list(shown), [plain(points[i].revision or points[i].created[:10]) for i in shown])
    axes.set_xlim(-0.5, max(len(points) - 0.5, 1))
    axes.set_ylim(0, 1.15 * max(point.median_ms for point in points))
    axes.set_ylabel("ms")
    axes.set_title(plain(series.label), fontsize=9, loc="left")
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _problem(line: str) -> str | None:
    """Why a line is no entry; None where it is one."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return "is truncated or no JSON"
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        return f"has no schema {SCHEMA}"
    try:
        series = _series([found])
        possible = all(_possible(one, point) for one in series for point in one.points)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        series, possible = (), False
    if not series:
        return "lacks what an entry has"
    return None if possible else "has numbers that no run gives"


def _possible(series: Series, point: TrendPoint) -> bool:
    """Whether a run can have had these: times and ratios are above zero, and have an end."""
    ratio = 1.0 if point.ratio is None else point.ratio
    return min(series.batch, series.threads) >= 1 and 0 < point.median_ms < _MOST and 0 < ratio < _MOST


def _series(entries: Sequence[Mapping[str, Any]]) -> tuple[Series, ...]:
    found: dict[tuple[str, str, int, int], list[TrendPoint]] = {}
    fingerprints: dict[tuple[str, str, int, int], Any] = {}
    for one in entries:
        for batch, times in one["batches"].items():
            key = (str(one["precision"]), str(one["backend"]), int(batch), int(one["threads"]))
            machine = one["machine"]
            name = computed_on(machine, one.get("device"))
            point = TrendPoint(
                created=str(one["created"]),
                revision=str(one.get("revision") or ""),
                median_ms=float(times["median_ms"]),
                ratio=times.get("ratio"),
                verdict=str(one.get("verdict") or ""),
                machine=name,
                comparable=fingerprints.get(key) == machine,
            )
            fingerprints[key] = machine
            found.setdefault(key, []).append(point)
    return tuple(Series(*key, tuple(points)) for key, points in found.items())


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)
