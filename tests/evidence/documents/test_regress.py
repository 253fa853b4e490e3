"""Gates on facts, what is accepted, and the pages for CI."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from mlpdeploy.commands import gating
from mlpdeploy.commands.baseline import Baseline
from mlpdeploy.errors import InputError
from mlpdeploy.evidence.documents import history, outcome, regress
from mlpdeploy.evidence.documents.engine_facts import Accuracy, Facts
from mlpdeploy.evidence.documents.regress import Limits, Regress, accept, fact_gates, latency_gate, percentage
from mlpdeploy.evidence.latency import sequential_test
from mlpdeploy.selection import Selection
from mlpdeploy.terminal.measurements import print_regress

ACCURACY = Accuracy("relative error", 1e-3, "engine", "random", 8)
FACTS = Facts(
    1_000_000, 5.0, 200, 3, 4_000_000, ACCURACY, {}, failed_stages=0, launches=40, copies=2, launched_transposes=0
)  # fmt: skip


def verdicts(candidate: Facts, baseline: Facts = FACTS) -> dict[str, str]:
    return {one.name: one.verdict for one in fact_gates(baseline, candidate, Limits())}


def document(*gates: regress.Gate, undecided: str = "fail") -> dict[str, Any]:
    network = {"name": "net|1", "precision": "fp32", "backend": "openvino", "weights": "random"}
    found = Regress(
        created="2026-01-02T03:04:05+00:00",
        network=network,
        selection={},
        machine={"cpu": "A CPU", "cores": 2, "gpu": None},
        conditions={},
        settings={"threads": 1},
        baseline={"reference": "git:main", "kind": "git", "commit": "0123456789abcdef", "created": "now"},
        facts=FACTS,
        baseline_facts=FACTS,
        gates=gates,
        measurements=(),
        undecided=undecided,
    )
    return json.loads(json.dumps(found.to_json(), allow_nan=False))


def test_the_same_facts_pass() -> None:
    assert set(verdicts(FACTS).values()) == {sequential_test.PASSED}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"engine_bytes": 1_020_000}, regress.SIZE),
        ({"build_seconds": 11.0}, regress.BUILD),
        ({"layers": 201}, regress.LAYERS),
        ({"transposes": 4}, regress.TRANSPOSES),
        ({"launches": 41}, regress.LAUNCHES),
        ({"copies": 3}, regress.COPIES),
        ({"launched_transposes": 1}, regress.LAUNCHED_TRANSPOSES),
        ({"memory_bytes": 4_100_000, "memory_batch": 8}, regress.MEMORY),
        ({"accuracy": Accuracy("relative error", 7e-3, "engine", "random", 8)}, regress.ACCURACY),
        ({"failed_stages": 1}, regress.VERIFICATION),
    ],
)
def test_each_gate_fails_alone_and_can_be_accepted(change: dict[str, Any], name: str) -> None:
    found = verdicts(replace(FACTS, **change))
    assert [gate_name for gate_name, verdict in found.items() if verdict == sequential_test.REGRESSED] == [name]
    accepted = accept(fact_gates(FACTS, replace(FACTS, **change), Limits()), [name])
    assert {one.verdict for one in accepted} == {sequential_test.PASSED, regress.ACCEPTED}


def test_launches_are_gates_of_engines_that_tell_them() -> None:
    silent = replace(FACTS, launches=None, copies=None, launched_transposes=None)
    assert not {*regress.LAUNCHED} & verdicts(silent, silent).keys()
    for sides in ((silent, FACTS), (FACTS, silent)):
        found = verdicts(*sides)
        assert {found[name] for name in regress.LAUNCHED} == {regress.NOT_MEASURED}
    before = {name: value for name, value in silent.to_json().items() if value is not None}
    assert Facts.from_json(before) == silent


def test_builds_of_another_session_are_not_compared_and_one_in_a_busy_time_is_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    artifact = Baseline("x", {"kind": "bench"}, document={"facts": FACTS.to_json()})
    elsewhere = gating._facts_of_baseline(artifact, 32)
    (found,) = (one for one in fact_gates(elsewhere, FACTS, Limits()) if one.name == regress.BUILD)
    assert found.verdict == regress.NOT_MEASURED and "git:REVISION is built in this one" in found.reason

    times = iter([11.0, 6.0, 4.0])
    built = SimpleNamespace(manifest={"facts": {}})

    def build(*_: Any, **__: Any) -> Any:
        built.manifest["facts"]["build_seconds"] = next(times)
        return built

    monkeypatch.setattr(gating.pipeline, "build", build)
    slow, selection = replace(FACTS, build_seconds=30.0), Selection("mixer_s32")
    assert gating._built_again(selection, slow, FACTS, Limits(), None).build_seconds == 6.0
    assert gating._built_again(selection, FACTS, FACTS, Limits(), None) == FACTS
    assert gating._built_again(selection, slow, elsewhere, Limits(), None) == slow


def test_what_gets_better_or_stays_within_its_limit_passes() -> None:
    better = Facts(900_000, 1.0, 150, 0, 3_000_000, replace(ACCURACY, value=1e-4), {}, None, 0, 39, 0, 0)
    assert set(verdicts(better).values()) == {sequential_test.PASSED}
    assert verdicts(replace(FACTS, engine_bytes=1_009_000))[regress.SIZE] == sequential_test.PASSED
    assert (
        verdicts(replace(FACTS, transposes=1), replace(FACTS, transposes=0))[regress.TRANSPOSES]
        == sequential_test.REGRESSED
    )


def test_accuracy_on_images_is_lost_in_points_and_other_measures_are_not_compared() -> None:
    images = replace(FACTS, accuracy=Accuracy("top-1 accuracy", 0.800, "engine", "images", 500))
    worse = replace(FACTS, accuracy=Accuracy("top-1 accuracy", 0.794, "engine", "images", 500))
    assert verdicts(worse, images)[regress.ACCURACY] == sequential_test.REGRESSED
    assert verdicts(images, worse)[regress.ACCURACY] == sequential_test.PASSED
    assert verdicts(images)[regress.ACCURACY] == regress.NOT_MEASURED
    unverified = replace(FACTS, accuracy=None, reasons={"accuracy": "not verified"})
    (found,) = (one for one in fact_gates(FACTS, unverified, Limits()) if one.name == regress.ACCURACY)
    assert found.reason == "the candidate is not verified"


def test_a_candidate_that_failed_its_verification_does_not_pass_even_against_one_that_failed_too() -> None:
    broken = replace(FACTS, accuracy=None, failed_stages=2, reasons={regress.VERIFICATION: "engine: holds NaN"})
    for baseline in (FACTS, broken, replace(FACTS, failed_stages=None)):
        gates = fact_gates(baseline, broken, Limits())
        assert [one.name for one in gates if one.verdict == sequential_test.REGRESSED] == [regress.VERIFICATION]
        shown = document(*gates)
        assert outcome.sentence(shown["gates"][-1]) == "verification: regressed: engine: holds NaN"
        assert "2 failed" in outcome.markdown(shown) and "holds NaN" in outcome.junit(shown)
    fixed = fact_gates(broken, FACTS, Limits())[-1]
    assert (fixed.verdict, outcome.sentence(document(fixed)["gates"][0])) == (
        sequential_test.PASSED,
        "verification: passed",
    )
    unknown = fact_gates(FACTS, replace(FACTS, failed_stages=None), Limits())[-1]
    assert (unknown.verdict, unknown.reason) == (regress.NOT_MEASURED, "the candidate is not verified")


def test_the_worst_gate_decides_and_an_undecided_one_as_was_asked() -> None:
    passed = latency_gate(1, sequential_test.judge([0.0] * 20, 0.03), 1.0, 1.0)
    wide = latency_gate(8, sequential_test.judge([-0.3, 0.4] * 10, 0.03), 1.0, 1.0)
    slower = latency_gate(8, sequential_test.judge([0.1] * 20, 0.03), 1.0, 1.1)
    assert document(passed)["verdict"] == sequential_test.PASSED and document(passed)["passed"]
    assert not document(passed, wide)["passed"] and document(passed, wide, undecided="pass")["passed"]
    assert document(passed, wide, slower, undecided="pass")["verdict"] == sequential_test.REGRESSED
    assert not document(slower, undecided="pass")["passed"]


def test_unknown_gates_cannot_be_accepted() -> None:
    with pytest.raises(InputError, match="--accept speed: is no gate; choose from latency, engine-size"):
        accept((), ["speed"])


@pytest.mark.parametrize(("text", "value"), [("3%", 0.03), (" 0.5 % ", 0.005), ("0%", 0.0), (".5%", 0.005)])
def test_percentages(text: str, value: float) -> None:
    assert percentage("--max-slowdown", text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["3", "0.03", "-3%", "three%", "", "%", "3%%", "nan%", "1e2%"])
def test_what_is_no_percentage_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is no percentage; give one such as 3%"):
        percentage("--max-slowdown", text)


def test_junit_says_what_failed_what_was_skipped_and_why() -> None:
    slower = latency_gate(8, sequential_test.judge([0.1] * 20, 0.03), 1.0, 1.105)
    wide = latency_gate(1, sequential_test.judge([-0.3, 0.4] * 10, 0.03), 1.0, 1.0)
    missing = regress.not_measured(regress.ACCURACY, "", 0.005, 'the "baseline" is <not> verified')
    root = ElementTree.fromstring(outcome.junit(document(slower, wide, missing, undecided="pass")))
    (suite,) = root
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "2")
    cases = {case.get("name"): case for case in suite}
    failure = cases["latency, batch 8"].find("failure")
    assert failure is not None and "1 ms -> 1.1 ms, +11%" in str(failure.get("message"))
    skipped = cases["accuracy"].find("skipped")
    assert skipped is not None and 'the "baseline" is <not> verified' in str(skipped.get("message"))
    strict = ElementTree.fromstring(outcome.junit(document(wide)))
    assert strict[0].get("failures") == "1"


@pytest.mark.parametrize("count", [1, 9])
def test_no_change_is_told_before_there_is_an_interval(count: int) -> None:
    few = latency_gate(1, sequential_test.judge([math.log(1.5)] * count, 0.03), 92.0, 138.0)
    assert (few.change, few.low, few.verdict) == (None, None, sequential_test.UNDECIDED)
    found = document(few)
    console = Console(width=80, record=True, file=io.StringIO())
    print_regress(console, found)
    printed = console.export_text()
    assert "92 ms" in printed and "138 ms" in printed
    for text in (printed, outcome.markdown(found), outcome.junit(found)):
        assert "50" not in text and "new" not in text and "+" not in text.replace("+00:00", "")
    assert outcome.sentence(found["gates"][0]).endswith("92 ms -> 138 ms, no interval yet, limit 3%")
    history_entry = history.entry(found | {"kind": "regress", "measurements": [{"batch": 1, "medians_ms": [138.0]}]})
    assert history_entry["batches"]["1"] == {"median_ms": 138.0, "ratio": None}


def test_what_is_not_alike_is_told_everywhere() -> None:
    found = document(latency_gate(1, sequential_test.judge([0.0] * 20, 0.03), 1.0, 1.0))
    found["baseline"]["differs"] = ["precision: the baseline has fp16, the candidate fp32"]
    console = Console(width=100, record=True, file=io.StringIO())
    print_regress(console, found)
    for text in (console.export_text(), outcome.markdown(found), outcome.junit(found)):
        assert "not alike: precision: the baseline has fp16, the candidate fp32" in text


def test_markdown_has_a_row_for_each_gate_and_nothing_breaks_it() -> None:
    gates = (
        *fact_gates(FACTS, replace(FACTS, layers=250), Limits()),
        regress.not_measured("latency", "ms", 0.03, "a|b"),
    )
    text = outcome.markdown(document(*gates))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(gates) and len({line.replace("\\|", "").count("|") for line in rows}) == 1
    assert "layers: regressed | 200 | 250 | +25% |  | 0% |" in text and "- latency: a\\|b" in text
    assert "git:main (0123456789)" in text


def test_the_example_document_can_be_held_against(tmp_path: Path) -> None:
    from mlpdeploy.evidence.documents.bench import read

    found = read(Path(__file__).parents[2] / "data" / "bench.json")
    assert Facts.from_json(found["facts"]).layers == found["facts"]["layers"]
    for name, text, said in (
        ("missing.json", None, "cannot be read"),
        ("cut.json", json.dumps(found)[:-9], "is no JSON document"),
        ("other.json", "[1]", "is no result of"),
        ("old.json", json.dumps(found | {"schema": 0}), "has schema 0, this mlpdeploy reads 1: measure it again"),
    ):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=said):
            read(tmp_path / name)
