"""The history: what a killed run leaves, what is skipped and named, and the pictures of the trend."""

from __future__ import annotations

import io
import json
import math
import os
import threading
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from mlpdeploy.errors import InputError
from mlpdeploy.evidence.documents import history
from mlpdeploy.evidence.documents.bench import read as read_bench
from mlpdeploy.terminal.measurements import print_history

DOCUMENT = read_bench(Path(__file__).parents[2] / "data" / "bench.json")


def entry(number: int = 0, **changes: Any) -> dict[str, Any]:
    return history.entry(DOCUMENT, f"rev{number}") | changes


def test_runs_are_read_back_in_order_by_batch(tmp_path: Path) -> None:
    path = tmp_path / "net" / "history.jsonl"
    for number in range(3):
        history.append(path, entry(number))
    found = history.read(path, "net")
    sizes = [one["batch"] for one in DOCUMENT["measurements"]]
    assert [series.batch for series in found.series] == sizes and not found.skipped
    assert [point.revision for point in found.series[0].points] == ["rev0", "rev1", "rev2"]
    assert [point.comparable for point in found.series[0].points] == [False, True, True]


def test_a_truncated_line_is_skipped_and_named_and_the_next_run_begins_its_own(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history.append(path, entry(0))
    with path.open("a") as file:
        file.write(json.dumps(entry(1))[:100])  # a run that was killed while it wrote
    history.append(path, entry(2))
    found = history.read(path, "net")
    assert [point.revision for point in found.series[0].points] == ["rev0", "rev2"]
    assert found.skipped == (f"{path}, line 2: is truncated or no JSON; skipped",)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{}", "has no schema 1"),
        ("[1]", "has no schema 1"),
        (json.dumps({"schema": 1}), "lacks what an entry has"),
        (json.dumps(entry() | {"batches": {"1": {"median_ms": "fast"}}}), "lacks what an entry has"),
        (json.dumps(entry() | {"machine": None}), "lacks what an entry has"),
        (json.dumps(entry() | {"batches": {}}), "lacks what an entry has"),
        ("[" * 10_000, "is truncated or no JSON"),
        (json.dumps(entry() | {"batches": {"0": {"median_ms": 1.0}}}), "has numbers that no run gives"),
        *(
            (json.dumps(entry() | {"batches": {"1": {"median_ms": ms}}}), "has numbers that no run gives")
            for ms in (0.0, -1.0, math.nan, math.inf, 1e300)
        ),
        (json.dumps(entry() | {"batches": {"1": {"median_ms": 10**400}}}), "lacks what an entry has"),
        (
            json.dumps(entry() | {"batches": {"1": {"median_ms": 1.0, "ratio": math.nan}}}),
            "has numbers that no run gives",
        ),
        (json.dumps(entry() | {"batches": {"1": {"median_ms": 1.0, "ratio": "1"}}}), "lacks what an entry has"),
    ],
)
def test_other_lines_are_skipped_as_well(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(f"{line}\n{json.dumps(entry(1))}\n")
    found = history.read(path, "net")
    assert len(found.series[0].points) == 1 and found.skipped == (f"{path}, line 1: {said}; skipped",)
    path.write_text(f"{line}\n")
    with pytest.raises(InputError, match="line 1"):
        history.read(path, "net")


def test_a_run_is_kept_with_the_median_of_its_loads() -> None:
    measured = [{"batch": 1, "medians_ms": [1.58, 4.16]}, {"batch": 8, "medians_ms": [9.0, 3.0, 5.0]}]
    document = DOCUMENT | {"kind": "regress", "measurements": measured, "gates": []}
    batches = history.entry(document)["batches"]
    assert [round(batches[size]["median_ms"], 6) for size in ("1", "8")] == [2.87, 5.0]


def test_one_run_alone_is_shown_and_drawn(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history.append(path, entry(0, revision="$\\x$ [/b]", verdict="[/odd]"))
    found = history.read(path, "net")
    console = Console(width=80, record=True, file=io.StringIO())
    print_history(console, found)
    printed = console.export_text()
    assert "$\\x$ [/b]" in printed and "[/odd]" in printed
    assert ElementTree.fromstring(history.svg(found)).tag.endswith("svg")


def test_a_full_disk_leaves_the_history_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "history.jsonl"
    history.append(path, entry(0))
    before, write = path.read_bytes(), os.write
    monkeypatch.setattr(history.os, "write", lambda descriptor, line: write(descriptor, line[:50]))
    with pytest.raises(InputError, match="the history cannot be written"):
        history.append(path, entry(1))
    assert path.read_bytes() == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_what_is_no_file_is_no_history(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "history.jsonl")
    with pytest.raises(InputError, match="is no regular file"):
        history.read(tmp_path / "history.jsonl", "net")


def test_without_a_history_it_says_how_to_begin_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`mlpdeploy bench net` begins one"):
        history.read(tmp_path / "history.jsonl", "net")


def test_runs_at_the_same_time_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    threads = [threading.Thread(target=history.append, args=(path, entry(n))) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = history.read(path, "net")
    assert {point.revision for point in found.series[0].points} == {f"rev{n}" for n in range(16)} and not found.skipped


def test_the_picture_is_one_svg_that_does_not_change(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    machine = {**DOCUMENT["machine"], "cpu": "Another"}
    for number in range(5):
        history.append(path, entry(number, **({"machine": machine} if number == 3 else {})))
    found = history.read(path, "net")
    drawn = history.svg(found)
    assert ElementTree.fromstring(drawn).tag.endswith("svg") and history.svg(found) == drawn
    assert [point.comparable for point in found.series[0].points] == [False, True, True, False, False]


def test_the_terminal_shows_the_trend_within_80_columns(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    for number in range(20):
        batches = {"1": {"median_ms": 10.0 + number, "ratio": 1.0 + number / 100}}
        verdict = "regressed" if number > 3 else "passed"
        history.append(path, entry(number, batches=batches, verdict=verdict))
    console = Console(width=80, record=True, file=io.StringIO())
    print_history(console, history.read(path, "net"))
    lines = console.export_text().splitlines()
    assert all(len(line.rstrip()) <= 80 for line in lines)
    assert any("▁" in line and "█" in line for line in lines) and "  8 earlier runs are not shown" in lines
    assert any("rev19" in line and "29 ms" in line and "+19.0%" in line and "regressed" in line for line in lines)
    assert len(lines) < 20  # a run is one line


def test_sparklines() -> None:
    assert history.sparkline([1.0, 2.0, 3.0]) == "▁▅█" or history.sparkline([1.0, 2.0, 3.0]) == "▁▄█"
    assert history.sparkline([2.0]) == "▁"
