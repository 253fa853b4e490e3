"""The sequential test: its errors at the null, at the limit and at a true slowdown, whatever the noise looks like."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from mlpdeploy.evidence import gate

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
    logs = noise(rng, (RUNS, gate.LOOKS[-1])) + math.log1p(slowdown)
    return sum(gate.run(one, LIMIT).verdict == verdict for one in logs) / RUNS


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_the_errors_are_kept_and_a_true_slowdown_is_caught(noise: Noise) -> None:
    # With three standard errors of a share of 1 % and of 5 % in 1000 runs.
    assert share(gate.REGRESSED, noise, 0.0) <= gate.FALSE_ALARM
    assert share(gate.REGRESSED, noise, LIMIT) <= gate.FALSE_ALARM + 0.0095
    assert share(gate.PASSED, noise, LIMIT) <= gate.MISSED + 0.021
    assert share(gate.REGRESSED, noise, 0.05) >= 0.95
    assert share(gate.PASSED, noise, 0.0) >= 0.95


def test_noise_that_is_too_large_is_undecided_and_not_guessed() -> None:
    def wild(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        return rng.normal(0, 0.5, shape)

    assert share(gate.UNDECIDED, wild, 0.05) > 0.9
    assert share(gate.REGRESSED, wild, 0.0) <= gate.FALSE_ALARM


def test_a_run_stops_at_the_first_look_that_decides() -> None:
    assert gate.run(np.zeros(200), LIMIT).pairs == gate.LOOKS[0]
    assert gate.run(np.full(200, 0.06), LIMIT).verdict == gate.REGRESSED
    alternating = np.tile([0.0, 2 * math.log1p(LIMIT)], 100)  # its centre is the limit
    assert gate.run(alternating, LIMIT).pairs == gate.LOOKS[-1]


def test_a_few_outliers_decide_nothing() -> None:
    rng = np.random.default_rng(1)
    logs = rng.normal(0, 0.003, 28)
    logs[[3, 9]] = 3.0  # twenty times slower, twice
    found = gate.judge(logs, LIMIT)
    assert found.verdict == gate.PASSED and abs(found.value) < 0.005


def test_too_few_pairs_bound_nothing() -> None:
    few = gate.judge([0.2] * 4, LIMIT)
    assert few.verdict == gate.UNDECIDED and few.low == -1.0 and math.isinf(few.high)
    assert few.value == pytest.approx(math.expm1(0.2))
    with pytest.raises(ValueError, match="at least one pair"):
        gate.judge([], LIMIT)


def test_several_tests_share_the_error() -> None:
    logs = np.random.default_rng(0).normal(0, 0.01, 40)
    one, four = gate.judge(logs, LIMIT), gate.judge(logs, LIMIT, tests=4)
    assert four.low < one.low and one.high < four.high and four.value == one.value


@pytest.mark.parametrize("count", [5, 10, 15])
def test_the_ranks_are_those_of_the_exact_distribution(count: int) -> None:
    # All 2^n assignments of signs, counted one by one.
    signs = np.array(np.meshgrid(*[[0, 1]] * count)).reshape(count, -1)
    sums = (signs * np.arange(1, count + 1)[:, None]).sum(axis=0)
    for error in (0.001, 0.01, 0.05, 0.2):
        rank = gate._rank(count, error)
        assert (sums <= rank - 1).mean() <= error < (sums <= rank).mean()
