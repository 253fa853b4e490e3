"""The best engine of each network, within limits: which is chosen, which are not judged, and why there is none."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mlpdeploy.evidence.documents.matrix import FAILED, Matrix, Row
from mlpdeploy.evidence.report.matrix.best import Best, Limits
from mlpdeploy.evidence.report.matrix.result import Result
from tests.evidence.report.matrices import OTHER_MACHINE, document, failed, threads, whole, without

ONE = whole(("mixer_s16",))
"""fp32, bf16, fp16, int8: 9, 6, 5.5, 2.5 ms; 74, 37.5, 37, 19.25 MB; 78.12, 78.08, 78.1, 77.31 % right."""


def at(batch: str, found: Matrix, **limits: float) -> Best:
    return next(one for one in Result(found, Limits(**limits)).best if one.batch == batch)


def chosen(found: Matrix, **limits: float) -> str | None:
    one = at("1", found, **limits).within
    return None if one is None else one.short


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        ({"max_ms": 9.0}, "fp32"),
        ({"max_ms": 8.9}, "fp16"),
        ({"max_ms": 5.0}, "int8"),
        ({"max_ms": 1.0}, None),
        ({"min_top1": 0.78}, "fp16"),
        ({"min_top1": 0.7}, "int8"),
        ({"min_top1": 0.7812}, "fp32"),
        ({"min_top1": 0.79}, None),
        ({"max_ms": 9.0, "min_top1": 0.7}, "fp32"),
        ({"max_bytes": 37.2e6}, "fp16"),
        ({"max_bytes": 20e6, "min_top1": 0.7}, "int8"),
        ({"max_ms": 5.0, "min_top1": 0.78}, None),
    ],
)
def test_the_best_within_limits(limits: dict[str, float], name: str | None) -> None:
    assert chosen(ONE, **limits) == name


def test_the_ends_need_no_limits() -> None:
    one = at("1", ONE)
    assert [end.short for end in (one.fastest, one.accurate, one.smallest) if end] == ["int8", "fp32", "int8"]
    assert one.within is None and one.why == ""


def test_of_engines_that_are_as_accurate_the_faster_is_chosen() -> None:
    alike = document(*(replace(one, facts=replace(one.facts, top1=0.75)) for one in ONE.rows))
    assert chosen(alike, max_ms=9) == "int8" and chosen(alike, max_bytes=40e6) == "int8"


def test_limits_hold_at_each_batch_size_by_itself() -> None:
    assert chosen(ONE, max_ms=6) == "fp16" and at("8", ONE, max_ms=6).within is None
    assert at("8", ONE, max_ms=6).why == "none of 4 keeps to it"


def test_what_failed_is_not_chosen() -> None:
    rows = [*ONE.rows]
    rows[3] = replace(rows[3], state=FAILED)  # by its last command: all is known of it
    assert chosen(document(*rows), max_ms=5) is None and chosen(document(*rows), min_top1=0.7) == "fp16"
    fastest = at("1", document(*rows)).fastest
    assert fastest is not None and fastest.short == "fp16"
    dead = document(*map(failed, rows))
    assert [one.why for one in Result(dead, Limits(max_ms=5)).best] == ["no engine of it is done"]


def test_what_was_not_measured_is_not_judged_and_named() -> None:
    rows = [without(ONE.rows[0], "bench"), *ONE.rows[1:]]
    found = at("1", document(*rows), max_ms=20)
    assert found.within is not None and found.within.short == "fp16"
    assert found.why == "not measured, so not judged: fp32 openvino"
    unknown = document(*(without(one, "bench") for one in ONE.rows))
    assert [(one.within, one.why) for one in Result(unknown, Limits(max_ms=5)).best] == [
        (None, "no engine of it was timed")
    ]


def test_within_limits_but_of_no_known_accuracy_it_names_all() -> None:
    plain = document(*(without(one, "evaluate", "verify") for one in ONE.rows))
    found = at("1", plain, max_ms=5.5)
    assert found.within is None
    assert (
        found.why == "fp16 openvino, int8 openvino: within the limits, and not measured for an accuracy that compares"
    )


def test_without_an_evaluation_the_smallest_error_is_the_most_accurate() -> None:
    plain = document(*(without(one, "evaluate") for one in ONE.rows))
    assert chosen(plain, max_ms=8) == "fp16"
    assert at("1", plain, min_top1=0.5).why.startswith("not measured, so not judged")


def test_the_fastest_is_found_among_those_of_one_place() -> None:
    one, two, three, four = ONE.rows
    mixed = document(one, threads(two, 4), replace(three, machine=OTHER_MACHINE), four)
    found = Result(mixed, Limits(min_top1=0.5)).best
    names = [(one.place.text, one.within.short) for one in found if one.place and one.within and one.batch == "1"]
    assert names == [
        ("Example 9000, 2 threads", "int8"),
        ("Example 9000, 4 threads", "bf16"),
        ("Example 100, 2 threads", "fp16"),
    ]


def test_sizes_alone_need_no_times() -> None:
    untimed = document(*(without(one, "bench") for one in ONE.rows))
    (found,) = Result(untimed, Limits(max_bytes=40e6)).best
    assert found.within is not None and found.within.short == "fp16" and found.place is None
    (found,) = Result(untimed, Limits(min_top1=0.78)).best
    assert found.why.endswith("within the limits, and not timed")


def test_engines_of_one_precision_are_told_apart_by_what_differs() -> None:
    first = ONE.rows[0]
    alike: list[Row] = [replace(first, job=f"{first.job} level={level}") for level in (1, 3)]
    (network,) = Result(document(*alike)).seen.networks
    assert [one.label for one in network.engines] == ["fp32 openvino 1:8:32 level=1", "fp32 openvino 1:8:32 level=3"]


def test_a_result_is_json_with_what_was_asked_for() -> None:
    plain, asked = Result(ONE).to_json(), Result(ONE, Limits(max_ms=6)).to_json()
    assert plain == ONE.to_json() and asked.keys() - plain.keys() == {"limits", "best"}
    found = json.loads(json.dumps(asked, allow_nan=False))["best"][0]
    assert found["within"] == "mixer_s16 fp16 openvino 1:8:32" and found["batch"] == "1"
