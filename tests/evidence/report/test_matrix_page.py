"""The page and the Markdown about a matrix: what they say, what they do not claim, that they are whole and alone."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from mlpdeploy.evidence.documents.matrix import CANCELLED, PENDING, Row, Step
from mlpdeploy.evidence.report.matrix import page as matrix_page
from mlpdeploy.evidence.report.matrix.best import Limits
from mlpdeploy.evidence.report.matrix.changes import changes
from mlpdeploy.evidence.report.matrix.engines import overview
from mlpdeploy.evidence.report.matrix.page import page
from mlpdeploy.evidence.report.matrix.result import Result
from mlpdeploy.evidence.report.matrix.scatter import AREA, Mark, front, scatter
from mlpdeploy.evidence.report.matrix.summary import summary
from tests.browser import browser, chromium
from tests.evidence.report.matrices import (
    MACHINE,
    ON_GPU,
    OTHER_MACHINE,
    cached,
    document,
    failed,
    row,
    threads,
    whole,
    without,
)
from tests.evidence.report.read_page import SMALLEST, Page, contrast, visible

HOSTILE = (
    """<script>alert(1)</script>"'><img src=x onerror=alert(2)> {{ 7 * 7 }} $\\frac{1}$ &amp; | `x` \u202e模型 🎉"""
)
PRECISIONS = ("fp32", "bf16", "fp16", "int8")


@pytest.fixture(scope="module")
def result() -> Result:
    """Something of everything: a failure, changes, limits."""
    rows = [*whole(("mixer_s16",)).rows]
    now = document(*rows[:3], failed(rows[3]))
    before = document(*(replace(one, facts=replace(one.facts, latency_ms={"1": 100.0})) for one in rows[1:]))
    return Result(now, Limits(max_ms=6), changes(now, before, "earlier.json"))


@pytest.fixture(scope="module")
def text(result: Result) -> str:
    return page(result)


def test_it_is_whole_and_needs_nothing_from_elsewhere(text: str) -> None:
    found = Page(text)
    assert text.startswith("<!doctype html>") and len(found.ids) == len(set(found.ids))
    assert {"failed", "changes", "best", "networks", "machines"} <= set(found.ids)
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    assert all(link.startswith("#") or link == "data:," for link in found.links)
    assert not found.names & {"script", "iframe", "img", "object", "embed", "base", "form"}
    assert not [name for name in found.attributes if name.startswith("on")]
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert set(re.findall(r"url\(#([\w-]+)\)", text)) <= set(found.ids) and not re.findall(r"url\((?!#)", text)
    assert "default-src 'none'" in text and text.count('<svg class="chart"') == 3


def test_what_failed_and_what_is_best_stand_there_with_the_logs(text: str) -> None:
    shown = visible(text)
    assert "1 of 4 jobs failed" in shown and "1 job at build the compiler gave up" in shown
    assert "artifacts/ matrix" not in shown and "mixer_ s16-int8. log" in shown
    assert "At most 6 ms; of the engines that keep to it, the most accurate" in shown
    assert "fp16 openvino: 5.5 ms, 78.10%, 37.0 MB" in shown and "none of 3 keeps to it" in shown
    assert "top-1 of 1000 images of val; the 95 % interval of each reaches 2.6 points to either side at most" in shown
    assert "1 newly failing" in shown and "1 new" in shown and "2 faster" in shown


def test_the_same_result_gives_the_same_page(result: Result, text: str) -> None:
    assert page(Result(result.document, result.limits, result.since)) == text


def test_nothing_measured_is_said_and_not_drawn() -> None:
    nothing = document(*(without(one, "verify", "evaluate", "bench") for one in whole().rows))
    shown = visible(page(Result(nothing, Limits(max_ms=5))))
    for line in ("Not verified", "Not evaluated on data", "Not measured", "0 of 6 networks can be had", "not timed"):
        assert line in shown
    assert shown.count("Its accuracy is not known") == 6 and "svg" not in Page(page(Result(nothing))).names


def test_one_engine_alone_is_no_chart() -> None:
    found = page(Result(document(row())))
    assert "There is no chart: no two engines of it compare" in visible(found) and "<svg" not in found


@pytest.mark.parametrize("rows", [(), tuple(Row(one.job, one.selection) for one in whole().rows)])
def test_a_matrix_of_which_nothing_ran(rows: tuple[Row, ...]) -> None:
    shown = visible(page(Result(document(*rows))))
    assert "No job has run yet" in shown and "No engine is known" in shown
    assert ("What was not done" in shown) == bool(rows)
    assert summary(Result(document(*rows))).startswith("### ")


def test_jobs_that_failed_alike_are_told_once() -> None:
    many = document(*(failed(one) for one in whole(tuple(f"net_{place}" for place in range(75))).rows))
    shown = visible(page(Result(many)))
    assert "300 of 300 jobs failed" in shown and shown.count("the compiler gave up") == 1
    assert shown.count(".log") + shown.count(". log") == 300
    told = summary(Result(many))
    assert told.count("the compiler gave up") == 1 and "and 288 more" in told


def test_after_so_many_charts_it_draws_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_page, "MOST", 2)
    found = page(Result(whole(("one", "two", "three"))))
    assert found.count('<svg class="chart"') == 2
    assert visible(found).count("Its charts are not drawn: this page has 2") == 2


def test_times_of_several_places_share_no_chart_and_no_row() -> None:
    one, two, three, four = whole(("mixer_s16",)).rows
    mixed = document(one, threads(two, 4), replace(three, machine=OTHER_MACHINE), threads(four, None, "cuda"))
    seen = Result(mixed).seen
    assert len(seen.networks[0].places()) == 8
    found = page(Result(mixed))
    assert found.count('<svg class="chart"') == 1  # sizes compare
    shown = visible(found)
    assert "At 4 places, whose times do not compare" in shown and "machine 2: Example 100, 2 threads" in shown
    assert "cpu Example 100 (was Example 9000)" in shown


def test_on_a_gpu_threads_are_not_told_and_two_of_them_compare() -> None:
    one, two, *_ = (replace(each, machine=ON_GPU) for each in whole(("a",)).rows)
    seen = overview(document(threads(one, 1, "cuda"), threads(two, 2, "cuda")))
    assert [place.text for place, _ in seen.networks[0].places()] == ["Example L4", "Example L4"]
    assert [batch for _, batch in seen.networks[0].places()] == ["1", "8"]


def test_accuracy_on_other_data_shares_no_chart() -> None:
    one, two, *_ = whole(("mixer_s16",)).rows
    other = tuple(replace(step, asked={"data": "other"}) if step.name == "evaluate" else step for step in two.steps)
    apart = Result(document(one, replace(two, steps=other)))
    assert "<svg" not in page(apart) and all(best.accurate is None for best in apart.best)


def test_without_an_evaluation_errors_are_drawn_in_powers_of_ten() -> None:
    plain = document(*(without(one, "evaluate", "bench") for one in whole(("mixer_s16",)).rows))
    found = page(Result(plain))
    assert "Accuracy is largest relative error on random inputs" in visible(found) and ">10⁻⁶</text>" in found


def test_an_error_of_nothing_is_drawn_and_told() -> None:
    first, second, *_ = (without(one, "evaluate", "bench") for one in whole(("mixer_s16",)).rows)
    exact = tuple(
        replace(step, found={**step.found, "error": 0.0}) if step.name == "verify" else step for step in first.steps
    )
    shown = visible(page(Result(document(replace(first, steps=exact), second))))
    assert "an error of 0 is drawn at 1e-17" in shown and "0.0e" not in shown


def test_an_engine_that_was_not_run_is_not_called_proved() -> None:
    one = row()
    steps = tuple(
        replace(step, found={**step.found, "error": None}) if step.name == "verify" else step for step in one.steps
    )
    shown = visible(page(Result(document(replace(one, steps=steps)))))
    assert "0 of 1 engine proved" in shown and "1 were not run: their file is proved, not the engine" in shown


def test_hostile_names_stay_text() -> None:
    name = "package.module." * 30 + HOSTILE
    rows = [
        replace(
            one, job=f"{name} {precision}", selection={**one.selection, "name": name}, log=HOSTILE, worker=HOSTILE,
            machine={**MACHINE, "cpu": HOSTILE, "versions": {HOSTILE: HOSTILE}},
        )
        for one, precision in zip(whole(("mixer_s16",)).rows, PRECISIONS, strict=True)
    ]  # fmt: skip
    data = tuple(replace(step, asked={"data": HOSTILE}) if step.name == "evaluate" else step for step in rows[0].steps)
    odd = {"found": {"threads": HOSTILE, "device": ["cuda"]}}
    rows[0] = replace(rows[0], steps=(*data[:-1], replace(data[-1], **odd)))
    odd_sizes = {"1": 2.0, "9" * 5000: 0.5, HOSTILE: 1.0, "$\\frac$": 3.0}
    rows[1:3] = [replace(one, facts=replace(one.facts, latency_ms=odd_sizes)) for one in rows[1:3]]
    rows[3] = failed(rows[3], error=HOSTILE * 9)
    now = document(*rows, plan={"path": HOSTILE, "sha256": "ab" * 32})
    result = Result(now, Limits(min_top1=0.5), changes(now, document(row()), HOSTILE))
    found = Page(page(result))
    assert not found.names & {"script", "img"} and "onerror" not in found.attributes
    assert "<script>alert(1)</script>" in "".join(found.text) and "\u202e" not in page(result)
    told = summary(result)
    assert "<script" not in re.sub(r"(`+)(?:(?!\1).)*\1", "", told) and "\u202e" not in told
    table = told[told.index("#### Jobs") :].splitlines()[2:]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1


def test_markdown_starts_with_what_failed_and_has_every_job() -> None:
    rows = [*whole(("mixer_s16",)).rows]
    now = document(cached(rows[0]), *rows[1:3], failed(rows[3]))
    told = summary(Result(now, Limits(max_ms=6)))
    first, _, rest = told.partition("\n")
    assert first == "### ❌ plan.toml: 2 built, 1 cached, 1 failed"
    log = "`artifacts/matrix/plan/mixer_s16-int8.log`"
    assert f"- **1 at build**: the compiler gave up: mixer_s16 int8 openvino 1:8:32 ({log})" in rest
    assert "| mixer_s16 | batch 1 | **fp16 openvino: 5.5 ms, 78.10%, 37.0 MB** |" in rest
    assert "| ✅ cached | mixer_s16 fp32 openvino 1:8:32 | 9 | 54 | 78.12% | 2.0e-06 | 0.25 | 74.0 | 40 |" in rest


def test_an_interrupted_run_is_not_called_passed() -> None:
    ended = replace(row(), state=CANCELLED, steps=(Step("build", {}, PENDING),))
    assert summary(Result(document(row(precision="fp16"), ended))).startswith("### ⏳ plan.toml: 1 built, 1 cancelled")


def test_the_front_has_what_no_other_beats() -> None:
    marks = [Mark("slow", 9, 0.9), Mark("fast", 1, 0.5), Mark("beaten", 9, 0.6), Mark("wrong", 0.5, 0.99, failed=True)]
    assert [one.label for one in front(marks, 1)] == ["fast", "slow"]
    assert [one.label for one in front(marks, -1)] == ["fast"]


def test_a_chart_names_its_marks_without_writing_over_them() -> None:
    marks = [Mark(f"engine {place} openvino", 1 + place / 100, 0.8 + place / 1000) for place in range(12)]
    drawn = scatter(marks, "ms", "top-1, %", "title", "name", share=True)
    named = re.findall(r'y="([\d.]+)"[^>]*>(engine \d+ openvino)</text>', drawn)
    heights = sorted(float(height) for height, _ in named)
    assert 3 <= len(named) < 12 and len({name for _, name in named}) == len(named)
    assert all(height > 0 for height in heights) and AREA[1] > 0
    assert "not finite" not in scatter([Mark("a", 0, 0.0), Mark("b", 0, 0.0)], "ms", "error", "t", "n", share=False)


def test_a_browser_shows_it_in_light_and_dark(text: str, tmp_path: Path) -> None:
    if chromium() is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    file = tmp_path / "matrix.html"
    file.write_text(text, encoding="utf-8")
    with browser() as shown:
        for scheme, width in (("light", 1280), ("dark", 400)):
            shown.open(file, width, scheme)
            assert shown.messages == [file.as_uri()]
            assert shown.evaluate("document.documentElement.scrollWidth") <= width
            assert shown.evaluate(SMALLEST) >= 6.5
            style = "getComputedStyle(document.body)"
            assert contrast(*shown.evaluate(f"[{style}.backgroundColor, {style}.color]")) > 7
