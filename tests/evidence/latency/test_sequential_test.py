"""The sequential test: its errors at the null, at the limit and at a true slowdown, whatever the noise looks like."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from mlpdeploy.evidence.latency import sequential_test

RUNS = 1000
LIMIT = 0.03

Noise = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
NOISES: dict[str, Noise] = {
    "normal": lambda rng, shape: rng.normal(0, 0.01, shape),
    "two kinds of memory": lambda rng, shape: rng.choice([-0.02, 0.02], shape) + rng.normal(0, 0.002, shape),
    "heavy tails": lambda rng, shape: 0.005 * rng.standard_t(2, shape),
}


def share(verdict: str, noise: Noise, slowdown: float) -> float:
    rng = np.random.default_rng(0)
    logs = noise(rng, (RUNS, sequential_test.LOOKS[-1])) + math.log1p(slowdown)
    return sum(sequential_test.run(one, LIMIT).verdict == verdict for one in logs) / RUNS


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_the_errors_are_kept_and_a_true_slowdown_is_caught(noise: Noise) -> None:
    # With three standard errors of a share of 1 % and of 5 % in 1000 runs.
    assert share(sequential_test.REGRESSED, noise, 0.0) <= sequential_test.FALSE_ALARM
    assert share(sequential_test.REGRESSED, noise, LIMIT) <= sequential_test.FALSE_ALARM + 0.0095
    assert share(sequential_test.PASSED, noise, LIMIT) <= sequential_test.MISSED + 0.021
    assert share(sequential_test.REGRESSED, noise, 0.05) >= 0.95
    assert share(sequential_test.PASSED, noise, 0.0) >= 0.95


def test_noise_that_is_too_large_is_undecided_and_not_guessed() -> None:
    def wild(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        return rng.normal(0, 0.5, shape)

    assert share(sequential_test.UNDECIDED, wild, 0.05) > 0.9
    assert share(sequential_test.REGRESSED, wild, 0.0) <= sequential_test.FALSE_ALARM


def test_a_run_stops_at_the_first_look_that_decides() -> None:
    assert sequential_test.run(np.zeros(200), LIMIT).pairs == sequential_test.LOOKS[0]
    assert sequential_test.run(np.full(200, 0.06), LIMIT).verdict == sequential_test.REGRESSED
    alternating = np.tile([0.0, 2 * math.log1p(LIMIT)], 100)  # its centre is the limit
    assert sequential_test.run(alternating, LIMIT).pairs == sequential_test.LOOKS[-1]


def test_a_few_outliers_decide_nothing() -> None:
    rng = np.random.default_rng(1)
    logs = rng.normal(0, 0.003, 28)
    logs[[3, 9]] = 3.0  # twenty times slower, twice
    found = sequential_test.judge(logs, LIMIT)
    assert found.verdict == sequential_test.PASSED and abs(found.value) < 0.005


def test_too_few_pairs_bound_nothing() -> None:
    few = sequential_test.judge([0.2] * 4, LIMIT)
    assert few.verdict == sequential_test.UNDECIDED and few.low == -1.0 and math.isinf(few.high)
    assert few.value == pytest.approx(math.expm1(0.2))
    with pytest.raises(ValueError, match="at least one pair"):
        sequential_test.judge([], LIMIT)


def test_several_tests_share_the_error() -> None:
    logs = np.random.default_rng(0).normal(0, 0.01, 40)
    one, four = sequential_test.judge(logs, LIMIT), sequential_test.judge(logs, LIMIT, tests=4)
    assert four.low < one.low and one.high < four.high and four.value == one.value


@pytest.mark.parametrize("count", [5, 10, 15])
def test_the_ranks_are_those_of_the_exact_distribution(count: int) -> None:
    # All 2^n assignments of signs, counted one by one.
    signs = np.array(np.meshgrid(*[[0, 1]] * count)).reshape(count, -1)
    sums = (signs * np.arange(1, count + 1)[:, None]).sum(axis=0)
    for error in (0.001, 0.01, 0.05, 0.2):
        rank = sequential_test._rank(count, error)
        assert (sums <= rank - 1).mean() <= error < (sums <= rank).mean()
