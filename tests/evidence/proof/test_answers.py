"""Probabilities and named classes, told as scores: what is right passes for the scores themselves, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from mlpdeploy.evidence.proof.answers import as_scores, of_scores
from mlpdeploy.evidence.proof.compare import compare
from mlpdeploy.evidence.proof.runs import Outputs
from mlpdeploy.selection.service import ServiceChoice

SCORES = np.array([[1.0, 7.0, -3.0, 5.0, 6.9999], [0.0, 0.0, 0.0, 0.0, 0.0], [-50.0, 40.0, 2.0, 39.0, 3.0]])
ROWS = {"input": np.arange(3, dtype=np.float32)[:, None]}


def network(arrays: Outputs) -> Outputs:
    return {"output": SCORES[arrays["input"][:, 0].astype(int)]}


def answers(service: ServiceChoice, change: Callable[[Outputs], None] = lambda found: None) -> Callable[..., Outputs]:
    def run(arrays: Outputs) -> Outputs:
        found, _ = of_scores(network(arrays), {"output": 0.0}, service)
        change(found)
        return found

    return run


def off(service: ServiceChoice, change: Callable[[Outputs], None] = lambda found: None) -> float:
    """The worst error of what the answers tell of the scores."""
    told = as_scores(answers(service, change), network, "output", service)(ROWS)
    assert list(told) == ["output"] and told["output"].shape == SCORES.shape
    return compare(told["output"], SCORES).max_relative


EVERY = [ServiceChoice(softmax=softmax, topk=topk) for softmax in (False, True) for topk in (None, 1, 2, 5)]


@pytest.mark.parametrize("service", EVERY, ids=str)
def test_right_answers_are_the_scores(service: ServiceChoice) -> None:
    assert off(service) < 1e-12


@pytest.mark.parametrize("service", [one for one in EVERY if one.answers], ids=str)
def test_a_wrong_score_is_off_by_as_much(service: ServiceChoice) -> None:
    name = "output" if service.topk is None else "scores"

    def change(found: Outputs) -> None:
        if service.softmax:
            found[name][0, 0] *= np.exp(0.7)
        else:
            found[name][0, 0] += 0.7

    assert off(service, change) == pytest.approx(0.1, rel=1e-6)


def test_classes_of_like_scores_may_change_places() -> None:
    def change(found: Outputs) -> None:
        found["classes"][0] = found["classes"][0][::-1]

    assert off(ServiceChoice(topk=2), change) == pytest.approx(0.0001 / 7, rel=1e-6)


@pytest.mark.parametrize("named", [0, 2, 3])
@pytest.mark.parametrize("softmax", [False, True])
def test_a_class_that_is_not_among_the_largest_is_off(named: int, softmax: bool) -> None:
    def change(found: Outputs) -> None:
        found["classes"][0, 0] = named  # with the score of the largest

    assert off(ServiceChoice(softmax=softmax, topk=1), change) == pytest.approx((7 - SCORES[0, named]) / 7, rel=1e-6)


def test_a_smaller_class_with_its_own_score_is_off() -> None:
    # All that it says of that class is true, but not that no other is larger.
    def change(found: Outputs) -> None:
        found["classes"][0, 0], found["scores"][0, 0] = 3, 5.0

    assert off(ServiceChoice(topk=1), change) == pytest.approx(2 / 7, rel=1e-6)


@pytest.mark.parametrize(
    ("classes", "told"),
    [([1, 1], "names a class twice"), ([1, 5], "names class 5 of 5"), ([-1, 1], "names class -1 of 5")],
)
def test_classes_that_cannot_be(classes: list[int], told: str) -> None:
    def change(found: Outputs) -> None:
        found["classes"][1] = classes

    with pytest.raises(ValueError, match=told):
        off(ServiceChoice(topk=2), change)


def test_the_largest_come_in_order() -> None:
    def change(found: Outputs) -> None:
        for values in found.values():
            values[0] = values[0][::-1].copy()

    with pytest.raises(ValueError, match="not in order"):
        off(ServiceChoice(topk=2), change)


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 1.5])
@pytest.mark.parametrize("topk", [None, 5])
def test_what_is_no_probability_is_not_finite(value: float, topk: int | None) -> None:
    def change(found: Outputs) -> None:
        found["output" if topk is None else "scores"][0, -1 if np.isnan(value) or value < 0 else 0] = value

    assert off(ServiceChoice(softmax=True, topk=topk), change) == np.inf


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16], ids=lambda one: np.dtype(one).name)
def test_a_probability_too_small_for_its_dtype_is_a_bound(dtype: type) -> None:
    # Of a score of -50 beside one of 40, FP16 says 0.
    def change(found: Outputs) -> None:
        found["output"] = found["output"].astype(dtype)

    assert off(ServiceChoice(softmax=True), change) < 1e-3

    def high(found: Outputs) -> None:
        found["output"] = found["output"].astype(dtype)
        found["output"][2, 0] = 1e-3  # and not 0

    assert off(ServiceChoice(softmax=True), high) > 1


def test_the_network_runs_once_a_row() -> None:
    seen: list[int] = []

    def counted(arrays: Outputs) -> Outputs:
        seen.append(len(arrays["input"]))
        return network(arrays)

    service = ServiceChoice(topk=1)
    run = as_scores(answers(service), counted, "output", service)
    for order in ([0, 1], [1, 0, 2], [2, 2, 2], [0]):
        np.testing.assert_array_equal(run({"input": ROWS["input"][order]})["output"].argmax(1), SCORES[order].argmax(1))
    assert seen == [2, 1]


def test_an_engine_of_scores_is_itself() -> None:
    assert as_scores(network, network, "output", ServiceChoice()) is network
