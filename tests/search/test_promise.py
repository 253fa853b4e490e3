"""What a search expects of changes, and that only their order follows from it."""

from __future__ import annotations

import json

import pytest

from benchmarks.recorded import worth
from mlpdeploy.artifact.decisions import LEFT_OUT, PUT_IN
from mlpdeploy.engine.backend import backends
from mlpdeploy.progress import Stages
from mlpdeploy.search import _in_order, _Search, promise
from mlpdeploy.search.variants import Change
from mlpdeploy.selection.checks import rule_names
from tests.search.scales import ALL, DEFAULT, Scales, Shop

OUT = [Change(name, LEFT_OUT, count) for name, count in (("a", 5), ("b", 2), ("c", 9))]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("worth") / "worth.json"
    path.write_text(json.dumps({"engine": {"mine": {"a": 1.2, "b": 0.9}, "another": {"c": 0.8, "a": 0.5}}}))
    monkeypatch.setattr(promise, "WORTH", path)
    monkeypatch.setattr(promise.decisions, "SHIPPED", path.with_name("decided.json"))


def test_what_comes_with_mlpdeploy_can_be_read_and_names_rules() -> None:
    for backend in backends():
        assert all(0 < ratio <= 1 for ratio in promise.elsewhere(backend).values())
    assert promise.measured("openvino", "swin_t")["pick_parts", LEFT_OUT] < 0.97
    known = {
        name for engine in json.loads(promise.WORTH.read_text()).values() for row in engine.values() for name in row
    }
    assert known <= {*rule_names(), "propagate_layout"}


@pytest.mark.usefixtures("known")
def test_what_was_measured_for_the_network_counts_more_than_what_was_for_others() -> None:
    ranked, at_once = _in_order(OUT, "engine", "mine")
    assert [one.name for one in ranked] == ["b", "c", "a"] and at_once == {OUT[1]}
    ranked, at_once = _in_order(OUT, "engine", "a third one")
    assert [one.name for one in ranked] == ["a", "c", "b"] and not at_once
    ranked, at_once = _in_order(OUT, "another engine", "mine")
    assert [one.name for one in ranked] == ["c", "a", "b"] and not at_once


@pytest.mark.usefixtures("known")
def test_what_cost_time_when_left_out_saves_it_when_put_in() -> None:
    put_in = [Change(one.name, PUT_IN, one.fired) for one in OUT]
    ranked, at_once = _in_order(put_in, "engine", "mine")
    assert [one.name for one in ranked] == ["a", "c", "b"] and at_once == {put_in[0]}


def test_worth_is_what_was_decided_and_least_of_several_batch_sizes() -> None:
    def ratio(value: float, verdict: str = "faster") -> dict[str, object]:
        return {"ratio": {"value": value, "verdict": verdict}}

    rows = {
        "fired": {"a": 3},
        "openvino": {
            "refused": {"without d": "a reason"},
            "batch 1": {"default rules": ratio(1, "undecided"), "without a": ratio(0.9), "with b": ratio(0.8)},
            "batch 8": {"without a": ratio(0.95), "without c": ratio(1.3, "undecided"), "bare": ratio(2)},
        },
    }
    assert worth({"net": rows}) == {"openvino": {"net": {"a": 0.95, "b": 1.25}}}


def test_what_is_known_to_be_far_better_is_decided_without_a_look() -> None:
    shop, scales = Shop(), Scales()
    run = _Search(shop, scales, shop.make(DEFAULT), 100, lambda: scales.now, Stages())  # type: ignore[arg-type]
    found = run.through([ALL[1], *ALL[:1], *ALL[2:]], {ALL[1]}, 0)
    assert found[0].name == "pick_parts" and scales.decided[0].disabled_rules == ("pick_parts",)
    assert scales.now == len(ALL)
