"""How long pairs of loads are timed, and what is said of it."""

from __future__ import annotations

import math

import pytest

from mlpdeploy.evidence.latency import sequential_test
from mlpdeploy.evidence.latency.time_budget import WANTED, Cost, plan

SMALL = Cost(loading=0.2, timing={1: 0.25})


def test_with_time_enough_a_load_is_timed_for_as_long_again_as_it_takes() -> None:
    found = plan(SMALL, 300.0, 10)
    assert found.seconds == {1: pytest.approx(0.25 + 0.45)} and found.pair == pytest.approx(2 * 2 * 0.45)
    assert found.text == "about 18 s for 10 pairs of loads, which a verdict needs; at most 300 s"


def test_a_budget_is_to_hold_many_pairs_before_it_makes_them_longer() -> None:
    found = plan(SMALL, 40.0, 10)
    assert found.pair == pytest.approx(40.0 / WANTED) and found.seconds[1] > 0.25
    assert found.first < 40.0


def test_a_short_budget_leaves_the_shortest_loads_and_what_does_not_fit_is_said() -> None:
    found = plan(SMALL, 8.0, 10)
    assert found.seconds == {1: 0.25} and found.first == pytest.approx(9.0)
    assert found.text == "--time 8 is too short for 10 pairs of loads, which a verdict needs: they take about 9 s"


def test_batch_sizes_share_what_is_left_over_equally() -> None:
    found = plan(Cost(0.4, {1: 0.1, 64: 1.5}), 1000.0, 14)
    assert found.seconds == {1: pytest.approx(1.1), 64: pytest.approx(2.5)} and found.pair == pytest.approx(8.0)


@pytest.mark.parametrize("load", [0.0, 0.003, 0.03])
@pytest.mark.parametrize("second", [0.0, 0.003, 0.03])
def test_whatever_differs_more_the_pairs_take_at_most_twice_the_time_that_the_best_would(
    load: float, second: float
) -> None:
    overhead = 0.45

    def time_for_one_variance(seconds: float) -> float:
        return (load**2 + second**2 / seconds) * (overhead + seconds)

    best = min(time_for_one_variance(overhead * 10 ** (power / 20)) for power in range(-80, 81))
    assert time_for_one_variance(overhead) <= 2 * best + 1e-12


def test_fewer_pairs_than_a_verdict_needs_decide_nothing_whatever_they_show() -> None:
    assert [sequential_test.needed(tests) for tests in (1, 2, 8)] == [10, 14, 14]
    for tests in (1, 2, 8):
        count = sequential_test.needed(tests)
        assert sequential_test.judge([0.5] * count, 0.03, tests).verdict == sequential_test.REGRESSED
        assert sequential_test.judge([-0.5] * count, 0.03, tests).verdict == sequential_test.PASSED
        before = max((look for look in sequential_test.LOOKS if look < count), default=9)
        few = sequential_test.judge([0.5] * before, 0.03, tests)
        assert few.verdict == sequential_test.UNDECIDED and (few.low == -1.0 or math.isinf(few.high))
