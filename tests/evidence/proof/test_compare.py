from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpdeploy.evidence.proof.compare import agreement, compare, round_up, usual


def test_errors_are_relative_to_each_rows_own_largest_value() -> None:
    reference = np.array([[100.0, 1.0], [0.1, 0.01]])
    found = compare(reference + np.array([[0.5, 0.0], [0.0, 0.001]]), reference)
    assert found.max_relative == pytest.approx(0.01) and found.worst_row == 1
    assert found.relative_l2 == pytest.approx(math.hypot(0.5, 0.001) / math.hypot(100, 1, 0.1, 0.01))
    assert found.within(0.0101) and not found.within(0.0099)


def test_a_row_near_zero_is_compared_with_what_is_usual() -> None:
    reference = np.array([[3.0, 4.0], [2.0, 0.0], [1e-4, -1e-4]])
    size = usual({"y": reference}, "y")
    assert size == 2.0
    output = reference + 1e-3
    assert compare(output, reference).max_relative == pytest.approx(10)
    assert compare(output, reference, size).max_relative == pytest.approx(5e-4)
    assert compare(reference * [[1.1], [1], [1]], reference, size).max_relative == pytest.approx(0.1)
    assert compare(np.zeros((3, 2)), reference, size).max_relative == 1.0


def test_one_huge_row_hides_nothing_of_the_others() -> None:
    reference = np.array([[1e6], [1.0], [2.0], [1.0]])
    output = reference + np.array([[0.0], [0.5], [0.0], [0.0]])
    assert compare(output, reference, usual({"y": reference}, "y")).max_relative == pytest.approx(0.5 / 1.5)


def test_outputs_of_one_shape_are_measured_by_each_other_unless_one_is_of_another_scale() -> None:
    outputs = {name: np.full((2, 2), size) for name, size in (("a", 1.0), ("b", 0.2), ("c", 0.05), ("d", 2.0))}
    outputs["wide"] = np.full((2, 5), 0.01)
    # Rows of all four: 0.05, 0.2, 1 and 2, each twice.
    assert usual(outputs, "b") == pytest.approx(0.6)
    assert usual(outputs, "a") == 1.0 and usual(outputs, "d") == 2.0
    assert usual(outputs, "c") == 0.05
    assert usual(outputs, "wide") == 0.01


def test_float16_outputs_are_compared_in_float64() -> None:
    reference = np.full((1, 3), 60000.0)
    found = compare(np.full((1, 3), -60000.0, dtype=np.float16), reference)
    assert found.finite and found.max_relative == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_passes_no_tolerance(bad: float) -> None:
    output = np.ones((3, 4), dtype=np.float32)
    output[1, 2] = bad
    found = compare(output, np.ones((3, 4)))
    assert not found.finite and found.worst_row == 1
    assert not found.within(1e30) and found.passing_tolerance is None
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["max_relative"] is None


def test_a_reference_that_proves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        compare(np.ones((1, 2)), np.array([[1.0, np.nan]]))
    with pytest.raises(ValueError, match="no rows"):
        compare(np.ones((0, 2)), np.ones((0, 2)))
    with pytest.raises(ValueError, match="shape"):
        compare(np.ones((2, 1)), np.ones((2, 2)))


def test_a_row_of_zeros_is_compared_absolutely() -> None:
    assert compare(np.array([[0.0, 0.25]]), np.zeros((1, 2))).max_relative == 0.25


@given(st.floats(1e-30, 1e30))
def test_the_passing_tolerance_passes_and_is_at_most_a_tenth_too_wide(value: float) -> None:
    rounded = round_up(value)
    assert value <= rounded <= value * 1.1
    assert float(f"{rounded:.1e}") == rounded


def test_agreement_counts_classes_and_knows_the_margin() -> None:
    reference = np.eye(4, 6) * 2 + np.array([0, 1.0, 0, 0, 0, 0])
    output = reference.copy()
    output[0, 1] = 3
    found = agreement(output, reference)
    assert found.top1 == 0.75 and found.images == 4
    assert found.margin == pytest.approx(0.5)


def test_top5_needs_more_than_five_classes_and_ignores_order() -> None:
    reference = np.arange(10.0)[None]
    swapped = reference.copy()
    swapped[0, [8, 9]] = swapped[0, [9, 8]]
    assert agreement(swapped, reference).top1 == 0 and agreement(swapped, reference).top5 == 1
    assert agreement(reference[:, :5], reference[:, :5]).top5 is None


def test_nan_logits_never_agree() -> None:
    output = np.full((2, 7), np.nan)
    found = agreement(output, np.eye(2, 7))
    assert found.top1 == 0 and found.top5 == 0
