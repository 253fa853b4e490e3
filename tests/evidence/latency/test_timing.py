from __future__ import annotations

import gc
import json
import os
import time

import numpy as np
import pytest

from mlpdeploy.evidence.latency import collector
from mlpdeploy.evidence.latency.collector import settled
from mlpdeploy.evidence.latency.timing import FASTER, SLOWER, UNDECIDED, Timings, measure, pinned


def timings(**medians: float) -> Timings:
    rng = np.random.default_rng(0)
    drift = 1 + rng.random(40)
    seconds = {name: median * drift * rng.normal(1, 0.01, 40) for name, median in medians.items()}
    return Timings(seconds, dict.fromkeys(medians, 1), 0)


def test_verdicts_follow_the_whole_interval() -> None:
    found = timings(plain=1.0, better=0.9, worse=1.1, same=1.0)
    assert found.ratio("better", "plain").verdict == FASTER
    assert found.ratio("worse", "plain").verdict == SLOWER
    assert found.ratio("same", "plain").verdict == UNDECIDED


def test_the_interval_holds_the_ratio_and_drift_within_rounds_cancels() -> None:
    ratio = timings(plain=1.0, better=0.9).ratio("better", "plain")
    assert ratio.low <= ratio.value <= ratio.high
    # Both drift by a factor of up to two; the ratio is known to a few per cent all the same.
    assert ratio.high - ratio.low < 0.1


def test_contenders_take_turns_and_the_order_changes() -> None:
    calls: list[tuple[str, int]] = []
    contenders = {name: (lambda value, name=name: calls.append((name, value))) for name in "abc"}
    found = measure(contenders, [10, 20], rounds=12, warmup=1, shortest=0.0)
    timed = calls[3:]
    rounds = [timed[start : start + 3] for start in range(0, 36, 3)]
    assert all(sorted(name for name, _ in one) == ["a", "b", "c"] for one in rounds)
    assert len({tuple(name for name, _ in one) for one in rounds}) > 2
    assert [one[0][1] for one in rounds] == [10, 20] * 6 and all(len({v for _, v in one}) == 1 for one in rounds)
    assert {len(values) for values in found.seconds.values()} == {12}


def test_short_calls_are_repeated_until_the_clock_sees_them() -> None:
    found = measure({"sleep": lambda _: time.sleep(1e-3), "nap": lambda _: time.sleep(1e-4)}, [0], rounds=5)
    assert found.calls["nap"] > found.calls["sleep"] >= 1
    assert 1e-3 <= found.latency("sleep").median < 1e-2


def test_the_budget_ends_the_rounds_but_not_before_five() -> None:
    found = measure({"slow": lambda _: time.sleep(0.01)}, [0], rounds=1000, seconds=0.0, warmup=1)
    assert found.latency("slow").samples == 5


def test_the_table_is_json_and_says_what_it_was_compared_with() -> None:
    table = json.loads(json.dumps(timings(plain=1.0, better=0.5).to_json("plain"), allow_nan=False))
    assert table["better"]["ratio"]["verdict"] == FASTER and table["better"]["ratio"]["baseline"] == "plain"
    assert "ratio" not in table["plain"] and table["plain"]["p99_ms"] >= table["plain"]["median_ms"]


@pytest.mark.parametrize("bad", [({}, [1], 3), ({"a": print}, [], 3), ({"a": print}, [1], 0)])
def test_nothing_to_time_is_an_error(bad: tuple[dict, list, int]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        measure(bad[0], bad[1], rounds=bad[2])


def test_what_lives_already_is_looked_at_once_and_not_before_each_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "_SETTLED", [])
    gc.unfreeze()
    with settled():
        with settled():
            pass
        assert gc.get_freeze_count() > 1000
    assert gc.get_freeze_count() == 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin threads")
def test_pinning_is_undone_and_refuses_cores_that_are_not_there() -> None:
    before = os.sched_getaffinity(0)
    with pinned(1) as cores:
        assert os.sched_getaffinity(0) == set(cores) and len(cores) == 1
    assert os.sched_getaffinity(0) == before
    with pytest.raises(ValueError, match="this process may use"), pinned(len(before) + 1):
        pass
