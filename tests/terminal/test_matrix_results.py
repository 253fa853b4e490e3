"""`mlpdeploy matrix` on saved results: a page, Markdown, what changed, the best engines within limits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlpdeploy.evidence.documents import matrix
from mlpdeploy.evidence.documents.matrix import Row
from mlpdeploy.matrix import plan
from mlpdeploy.matrix.running import text
from tests.evidence.report.matrices import PLAN, document, failed, row
from tests.terminal.conftest import Said

Saved = Callable[..., Path]


@pytest.fixture(autouse=True)
def plan_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    path = Path("plan.toml")
    path.write_text('network = "mixer_s16"\nprecision = ["fp32", "fp16"]\nbackend = "openvino"\n')
    yield path


@pytest.fixture
def saved(plan_file: Path) -> Saved:
    """Write a result of the plan: its two jobs as measured, each changed by a function."""

    def write(name: str, change: Callable[[Row], Row] = lambda one: one) -> Path:
        jobs = plan.read(plan_file)
        rows = [replace(row(precision=job.selection.precision), job=job.name) for job in jobs.jobs]
        Path(name).write_text(text(document(*map(change, rows), plan={**PLAN, "sha256": jobs.sha256})))
        return Path(name)

    return write


def slower(one: Row) -> Row:
    times = {batch: 2 * value for batch, value in one.facts.latency_ms.items()}
    return replace(one, facts=replace(one.facts, latency_ms=times))


def test_a_page_and_markdown_of_a_finished_result(saved: Saved, said: Said) -> None:
    Path("summary.md").write_text("before\n")
    options = ("--html", "site/page.html", "--markdown", "summary.md")
    out, _ = said("matrix", "plan.toml", "--join", saved("a.json"), *options)
    assert "2 built" in out
    assert Path("site/page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    told = Path("summary.md").read_text(encoding="utf-8")
    assert told.startswith("before\n### ✅ plan.toml: 2 built") and "mixer\\_s16" not in told


def test_the_terminal_names_the_best_and_what_changed(saved: Saved, said: Said) -> None:
    before, now = saved("before.json"), saved("now.json", slower)
    out, _ = said("matrix", "plan.toml", "--join", now, "--diff", before, "--max-latency", 15)
    assert "At most 15 ms: the most accurate" in out and "fp16 openvino: 11 ms" in " ".join(out.split())
    assert "Since before.json: 2 slower" in out and "9 to 18 ms at batch 1 (+100%)" in out


def test_json_is_one_document_with_what_was_asked_for(saved: Saved, said: Said) -> None:
    before, now = saved("before.json"), saved("now.json", failed)
    out, _ = said("matrix", "plan.toml", "--join", now, "--diff", before, "--min-top1", "70%", "--json", code=1)
    found = json.loads(out)
    assert [one["kind"] for one in found["changes"]["changes"]] == ["newly failing"] * 2
    assert found["best"][0]["why"] == "no engine of it is done" and found["limits"]["min_top1"] == 0.7
    Path("again.json").write_text(out)  # which is a result like any other
    assert len(matrix.read(Path("again.json")).rows) == 2


def test_without_these_options_the_document_is_as_it_was(saved: Saved, said: Said) -> None:
    out, _ = said("matrix", "plan.toml", "--join", saved("a.json"), "--json")
    assert not {"changes", "best", "limits"} & json.loads(out).keys()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--max-latency", "0"), "--max-latency 0: give milliseconds above 0"),
        (("--max-latency", "nan"), "--max-latency nan: give milliseconds above 0"),
        (("--max-size", "-1"), "--max-size -1: give megabytes above 0"),
        (("--min-top1", "0.7"), "--min-top1 '0.7': is no percentage; give one such as 3%"),
        (("--min-top1", "101%"), "--min-top1 101%: no engine is right in more than 100%"),
        (("--diff", "nowhere.json"), "nowhere.json: cannot be read"),
        (("--diff", "plan.toml"), "plan.toml: is no JSON document"),
        (("--html", "a.md", "--markdown", "a.md"), "two results are to be written there"),
        (("--html", "."), "cannot be written"),
    ],
)
def test_bad_input_is_one_line_before_anything_runs(options: tuple[str, ...], line: str, fails: Any) -> None:
    assert line in fails("matrix", "plan.toml", *options)
    assert not Path("artifacts").exists()


def test_a_dry_run_has_no_page(fails: Any) -> None:
    assert "--dry-run has no result" in fails("matrix", "plan.toml", "--dry-run", "--html", "page.html")


def test_a_library_that_is_missing_is_told_first(fails: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = fails("matrix", "plan.toml", "--html", "page.html", code=3)
    assert line == "error: the page needs jinja2 and matplotlib: pip install jinja2 matplotlib"


def test_a_part_of_the_jobs_is_not_called_gone(saved: Saved, said: Said) -> None:
    before = saved("before.json")
    part = matrix.read(before)
    Path("part.json").write_text(text(replace(part, rows=part.rows[:1])))
    out, _ = said("matrix", "plan.toml", "--join", "part.json", "--only", "fp32", "--diff", before)
    assert "nothing changed" in out and "which jobs are new or gone is not told" in out
