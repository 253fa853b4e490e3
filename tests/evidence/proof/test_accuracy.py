"""Places of the right class, intervals and McNemar's test, held against scipy and known tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from mlpdeploy.evidence.proof.accuracy import NOT_FINITE, TOP, Paired, Share, places


def test_places_are_those_of_torchs_own_order() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.standard_normal((200, 12)).astype(np.float32), rng.integers(0, 12, 200)
    order = torch.from_numpy(scores).argsort(dim=1, descending=True).numpy()
    expected = [min(TOP, row.tolist().index(label)) for row, label in zip(order, labels, strict=True)]
    assert places(scores, labels).tolist() == expected


def test_of_equal_scores_the_earlier_class_comes_first_and_nothing_counts_that_is_not_finite() -> None:
    scores = np.array([[1, 1, 0], [1, 1, 0], [np.nan, 2, 1], [0, 1, np.inf], [-np.inf, 1, 0]], np.float32)
    assert places(scores, np.array([0, 1, 1, 2, 1])).tolist() == [0, 1, NOT_FINITE, NOT_FINITE, NOT_FINITE]
    assert places(np.zeros((2, 2), np.float16), np.array([0, 1])).tolist() == [0, 1]


@pytest.mark.parametrize(("right", "count"), [(0, 10), (10, 10), (1, 3), (7, 10), (40000, 50000), (0, 1), (1, 1)])
def test_intervals_are_wilsons(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert Share(right, count).interval == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(
    ("first", "second"), [(0, 0), (0, 1), (5, 15), (15, 5), (59, 6), (86, 150), (3, 3), (1000, 1200), (9000, 9100)]
)
def test_the_paired_test_is_an_exact_binomial_one(first: int, second: int) -> None:
    expected = 1.0 if first + second == 0 else binomtest(first, first + second).pvalue
    assert Paired(first, second).p_value == pytest.approx(expected, rel=1e-9)


def test_the_paired_test_on_published_tables() -> None:
    assert Paired(5, 15).p_value == pytest.approx(0.04138947)  # 20 coins, 5 heads
    assert Paired(86, 150).p_value == pytest.approx(3.716e-05, rel=1e-3)  # Agresti: approval of a prime minister
    assert Paired(10, 20).worse is False and Paired(5, 15).worse is True and Paired(15, 5).worse is False
    assert 0 < Paired(0, 900).p_value < 1e-260
    assert Paired(0, 50_000).p_value == 0.0 and Paired(25_000, 25_000).p_value == 1.0
