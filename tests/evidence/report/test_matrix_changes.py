"""What changed between two runs of a matrix: what is told, and what is not since it does not compare."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from mlpdeploy.evidence.documents.matrix import CANCELLED, Facts, Row
from mlpdeploy.evidence.report.matrix.changes import (
    DONE,
    FAILING,
    FASTER,
    GONE,
    LARGER,
    LESS_ACCURATE,
    MENDED,
    MORE_ACCURATE,
    NEW,
    OTHER_FILES,
    SLOWER,
    SMALLER,
    UNDONE,
    Changes,
    changes,
)
from tests.evidence.report.matrices import MACHINE, OTHER_MACHINE, document, failed, row, threads, whole, without


def facts(one: Row, **values: Any) -> Row:
    known: Facts = replace(one.facts, **values)
    return replace(one, facts=known)


def since(before: Row, now: Row) -> Changes:
    return changes(document(now), document(before), "earlier.json")


def kinds(before: Row, now: Row) -> list[str]:
    return [one.kind for one in since(before, now).changes]


def test_a_run_beside_itself_has_no_change() -> None:
    found = changes(whole(), whole(), "earlier.json")
    assert found.changes == () and found.notes == () and found.compared == 24 and found.counts() == {}


def test_new_and_gone_jobs() -> None:
    found = changes(whole(("mixer_s16", "vip_s7")), whole(("mixer_s16", "mixer_b16")), "earlier.json")
    assert found.counts() == {GONE: 4, NEW: 4} and found.compared == 4
    assert {one.job.split()[0] for one in found.of(GONE)} == {"mixer_b16"}


@pytest.mark.parametrize("shard", [None, {"index": 1, "count": 2}])
def test_of_a_part_it_is_not_told_what_is_new_or_gone(shard: dict[str, int] | None) -> None:
    now = document(row(), shard=shard)
    found = changes(now, whole(("mixer_s16", "mixer_b16")), "earlier.json", whole=shard is not None)
    assert found.changes == () and found.notes == (
        "One of the two is a part of its plan: which jobs are new or gone is not told",
    )


def test_newly_failing_mended_and_failing_still() -> None:
    found = since(row(), failed(row(), "verify", "error 0.5"))
    assert [(one.kind, one.text) for one in found.changes] == [(FAILING, "verify: error 0.5 (it was built)")]
    assert [(one.kind, one.text) for one in since(failed(row()), row()).changes] == [
        (MENDED, "it failed: build: the compiler gave up")
    ]
    assert kinds(failed(row()), failed(row(), "verify")) == []
    assert kinds(row(), replace(row(), state=CANCELLED)) == [UNDONE]
    assert kinds(replace(row(), state=CANCELLED), row()) == [DONE]
    assert kinds(Row(row().job, row().selection), failed(row())) == [FAILING]


def test_times_beyond_what_two_runs_differ_by() -> None:
    found = since(row(), facts(row(), latency_ms={"1": 9.0 * 1.06, "8": 54.0 * 0.9, "32": 1.0}))
    assert [(one.kind, one.text, one.before) for one in found.changes] == [
        (SLOWER, "9 to 9.54 ms at batch 1 (+6%)", 9.0),
        (FASTER, "54 to 48.6 ms at batch 8 (-10%)", 54.0),
    ]
    assert found.counts() == {SLOWER: 1, FASTER: 1}
    assert kinds(row(), facts(row(), latency_ms={"1": 9.0 * 1.04, "8": 54.0 * 0.96})) == []


def twice_as_slow() -> Row:
    return facts(row(), latency_ms={"1": 18.0, "8": 108.0})


@pytest.mark.parametrize(
    ("slow", "why"),
    [
        (replace(twice_as_slow(), machine=OTHER_MACHINE), "cpu Example 100 (was Example 9000)"),
        (replace(twice_as_slow(), machine={**MACHINE, "cores": 8}), "cores 8 (was 4)"),
        (threads(twice_as_slow(), 4), "Example 9000, 4 threads (was Example 9000, 2 threads)"),
        (replace(twice_as_slow(), machine=None), "it is not known on which machine they were measured"),
    ],
)
def test_times_of_other_machines_or_threads_are_not_compared(slow: Row, why: str) -> None:
    found = since(row(), slow)
    assert found.changes == () and found.notes == (f"Times of 1 job are not compared: {why}",)


def test_versions_may_differ_and_are_told() -> None:
    newer = replace(twice_as_slow(), machine={**MACHINE, "versions": {"openvino": "2027.1.0", "torch": "2.14.1"}})
    found = since(row(), newer)
    assert found.counts() == {SLOWER: 1} and len(found.changes) == 2
    assert found.notes == ("Times of 1 job are compared although something differs: openvino 2027.1.0 (was 2026.4.1)",)


def test_sizes_accuracies_and_files() -> None:
    assert kinds(row(), facts(row(), engine_bytes=80_000_000)) == [LARGER]
    assert kinds(row(), facts(row(), engine_bytes=60_000_000)) == [SMALLER]
    assert kinds(row(), facts(row(), engine_bytes=74_000_010)) == []  # which nobody is shown
    assert kinds(row(), facts(row(), top1=0.75)) == [LESS_ACCURATE]
    assert kinds(row(), facts(row(), top1=0.80)) == [MORE_ACCURATE]
    other = replace(row(), files={**row().files, "model.onnx": "00" * 32}, key="other")
    assert [one.text for one in since(row(), other).changes] == ["model.onnx; its key is another"]
    assert kinds(row(), other) == [OTHER_FILES]


def test_errors_stand_in_for_an_accuracy_that_was_not_evaluated() -> None:
    plain = without(row(), "evaluate")

    def off(error: float) -> Row:
        found = {"passed": True, "inputs": "random", "error": error}
        return replace(plain, steps=tuple(replace(s, found=found) if s.name == "verify" else s for s in plain.steps))

    assert kinds(off(1e-6), off(1e-5)) == [LESS_ACCURATE] and kinds(off(1e-5), off(1e-6)) == [MORE_ACCURATE]
    assert kinds(off(1e-6), off(1.2e-6)) == [] and kinds(off(0.0), off(1e-6)) == [LESS_ACCURATE]


def test_accuracies_on_other_data_are_not_compared() -> None:
    steps = tuple(replace(one, asked={"data": "other"}) if one.name == "evaluate" else one for one in row().steps)
    assert kinds(row(), replace(facts(row(), top1=0.1), steps=steps)) == []


def test_a_job_is_known_by_its_selection_and_not_by_its_name() -> None:
    renamed = replace(row(), job="mixer_s16 fp32 openvino 1:8:32 level=3")
    assert changes(document(renamed), document(row()), "earlier.json").compared == 1
    old = {name: value for name, value in row().selection.items() if name not in ("level", "gpus", "io")}
    assert changes(document(row()), document(replace(row(), selection=old)), "earlier.json").compared == 1
    other = replace(row(), selection={**row().selection, "seed": 1})
    assert changes(document(other), document(row()), "earlier.json").counts() == {GONE: 1, NEW: 1}


def test_what_got_worse_comes_first_and_it_is_json() -> None:
    now = document(failed(row()), facts(row("vip_s7"), latency_ms={"1": 1.0}, engine_bytes=99_000_000))
    found = changes(now, document(row(), row("vip_s7")), "earlier.json")
    assert [one.kind for one in found.changes] == [FAILING, LARGER, FASTER]
    values = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert values["changes"][2] | {"text": ""} == {
        "kind": FASTER, "job": "vip_s7 fp32 openvino 1:8:32", "text": "", "before": 9.0, "after": 1.0,
    }  # fmt: skip
