"""What a search tries, in which order, what it keeps, and when it stops: with engines that are only names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mlpdeploy.artifact.decisions import KEPT, NO_BETTER, PUT_IN, REFUSED, SET, UNDECIDED, UNTRIED
from mlpdeploy.engine.backend import backends
from mlpdeploy.errors import ArtifactError, MachineLacks
from mlpdeploy.evidence.latency import load_pairs
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from mlpdeploy.progress import Stages
from mlpdeploy.search import _Search
from mlpdeploy.search.judging import Judgement, by_structure, by_time
from mlpdeploy.search.variants import Variant, Workshop
from mlpdeploy.selection import Selection
from tests.graph.rules.test_activate_projections import Block
from tests.search.scales import ALL, DEFAULT, Scales, Shop, change, searched


def test_the_most_promising_is_decided_first_and_the_next_on_top_of_it() -> None:
    shop, scales = Shop(), Scales()
    found = searched(shop, scales, ALL)
    assert list(found) == ["remove_identities", "pick_parts", "gather_shifts", "fold_affine"]
    assert found == dict(remove_identities=KEPT, pick_parts=KEPT, gather_shifts=NO_BETTER, fold_affine=NO_BETTER)
    assert scales.decided[1].disabled_rules == ("pick_parts", "remove_identities")
    assert scales.decided[2].enabled_rules == ("gather_shifts",)


def test_what_is_far_better_at_first_sight_is_decided_before_others_are_looked_at() -> None:
    shop, scales = Shop(), Scales()
    found = searched(shop, scales, [*ALL[:3], change("merge_reshapes"), ALL[3]])
    assert list(found) == ["merge_reshapes", "remove_identities", "pick_parts", "gather_shifts", "fold_affine"]
    assert [one.disabled_rules for one in scales.decided[:2]] == [
        ("merge_reshapes",), ("merge_reshapes", "remove_identities")
    ]  # fmt: skip


def test_an_engine_that_looked_promising_is_not_built_twice_and_the_others_are_removed() -> None:
    shop, scales = Shop(), Scales()
    searched(shop, scales, ALL)
    first = DEFAULT.__class__("mixer_s32", "fp32", "onnxruntime", "1", disabled_rules=("remove_identities",))
    assert shop.made.count(first) == 1
    # What is left are the engines that were the best so far; the folder goes as a whole.
    assert all("fold_affine" not in one.disabled_rules for one in shop.there)


def test_what_cannot_be_built_or_changes_nothing_is_said_and_stops_nothing() -> None:
    shop = Shop(broken=("fold_affine",), same=("gather_shifts",))
    incumbent = shop.make(DEFAULT)
    scales = Scales()
    run = _Search(shop, scales, incumbent, 100, lambda: scales.now, Stages())  # type: ignore[arg-type]
    trials = {trial.name: trial for trial in run.through(ALL, (), 100)}
    assert (trials["fold_affine"].verdict, trials["fold_affine"].why) == (REFUSED, "the engine refuses")
    assert (trials["gather_shifts"].verdict, trials["gather_shifts"].why) == (NO_BETTER, "it makes no other file")
    assert trials["pick_parts"].verdict == KEPT


@pytest.mark.parametrize("at", ["glance", "decide"])
def test_an_engine_that_cannot_be_loaded_is_refused_and_stops_nothing(at: str) -> None:
    class Failing(Scales):
        def glance(self, incumbent: Variant, candidate: Variant) -> float:
            return self.unless_broken("glance", candidate) or super().glance(incumbent, candidate)

        def decide(self, *judged: Any) -> Judgement:
            return self.unless_broken("decide", judged[1]) or super().decide(*judged)

        def unless_broken(self, now: str, candidate: Variant) -> None:
            if now == at and "remove_identities" in candidate.selection.disabled_rules:
                raise ArtifactError("the engine is refused\nmuch more")

    shop, scales = Shop(), Failing()
    run = _Search(shop, scales, shop.make(DEFAULT), 100, lambda: scales.now, Stages())  # type: ignore[arg-type]
    trials = {trial.name: trial for trial in run.through(ALL, (), 100)}
    broken = trials["remove_identities"]
    assert (broken.verdict, broken.why) == (REFUSED, "the engine is refused")
    assert trials["pick_parts"].verdict == KEPT and len(trials) == len(ALL)
    assert all("remove_identities" not in one.disabled_rules for one in shop.there)


def test_a_default_that_cannot_be_loaded_ends_the_search() -> None:
    class Failing(Scales):
        def glance(self, incumbent: Variant, candidate: Variant) -> float:
            raise MachineLacks("no room on the GPU")

    with pytest.raises(MachineLacks, match="no room"):
        searched(Shop(), Failing(), ALL)


@pytest.mark.parametrize(("seconds", "untried"), [(0.5, 4), (5.0, 2), (100.0, 0)])
def test_it_stops_at_its_time_and_says_what_was_not_tried(seconds: float, untried: int) -> None:
    scales = Scales()
    found = list(searched(Shop(), scales, ALL, seconds).values())
    assert found.count(UNTRIED) == untried and scales.now <= seconds + 1
    assert all(end <= seconds for end in scales.ends)


def test_words_of_a_build_route_are_set_on_top_of_each_other_each_setting_once() -> None:
    costs = {"": 1.0, "-a=1": 0.98, "-a=2": 0.97, "-b=1": 0.99, "-c=1": 1.2}

    class Routes(Scales):
        def cost(self, variant: Any) -> float:
            cost = 1.0
            for word in variant.selection.route.split():
                cost *= costs[word]
            return cost

    shop, scales = Shop(), Routes()
    found = searched(shop, scales, [change(word, SET) for word in costs if word])
    assert found == {"-a=2": KEPT, "-a=1": NO_BETTER, "-b=1": KEPT, "-c=1": NO_BETTER}
    assert [one.route for one in scales.decided] == ["-a=2", "-a=1", "-a=2 -b=1", "-a=2 -b=1 -c=1"]


def test_an_interruption_is_none_of_its_own() -> None:
    class Interrupted(Shop):
        def make(self, selection: Selection, unlike: Variant | None = None) -> Any:
            if selection.disabled_rules:
                raise KeyboardInterrupt
            return super().make(selection, unlike)

    with pytest.raises(KeyboardInterrupt):
        searched(Interrupted(), Scales(), ALL)


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], Any]:
    """A judge by time that is shown pairs with these log ratios, over and over."""

    def judge(logs: list[float], tests: int = 4) -> Any:
        def shown(*_: Any) -> Iterator[tuple[Any, ...]]:
            while True:
                yield from ((SimpleNamespace(log_ratio=log),) for log in logs)

        monkeypatch.setattr(load_pairs, "pairs", shown)
        shop = SimpleNamespace(selection=DEFAULT, traced=SimpleNamespace(inputs=()))
        found = by_time(shop, tests)  # type: ignore[arg-type]
        monkeypatch.setattr(type(found), "_contender", lambda *_: None)
        return found

    return judge


@pytest.mark.parametrize(
    ("logs", "verdict", "most"),
    [
        ([-0.05, -0.06, -0.04], KEPT, 10),
        ([0.05, 0.06, 0.04], NO_BETTER, 6),
        ([0.0, 0.0], NO_BETTER, 6),
        ([-0.003, 0.002], NO_BETTER, 14),  # by less than anybody would notice, if at all
        ([-0.06, 0.05, -0.05, 0.04], UNDECIDED, 28),
    ],
)
def test_times_decide(pairs: Any, logs: list[float], verdict: str, most: int) -> None:
    found = pairs(logs).decide(None, None, 100, lambda: 0.0)
    assert found.verdict == verdict and found.pairs <= most
    assert found.ratio.value == pytest.approx(1 + sum(logs) / len(logs), abs=0.02)


def test_a_small_gain_that_is_noise_is_not_kept_however_often_one_looks(pairs: Any) -> None:
    import numpy as np

    rng, kept = np.random.default_rng(0), 0
    for _ in range(300):
        logs = rng.normal(0, 0.03, 40).tolist()
        kept += pairs(logs, tests=5).decide(None, None, 100, lambda: 0.0).verdict == KEPT
    assert kept <= 9  # one in a hundred is meant: 0.05 for five changes together


def test_times_stop_at_their_end_undecided(pairs: Any) -> None:
    now = iter(range(100))
    found = pairs([-0.05]).decide(None, None, 3, lambda: next(now))
    assert (found.verdict, found.pairs) == (UNDECIDED, 4)


def engine(**launches: Any) -> Any:
    told = {"total": 100, "copies": 4, "transposes": 3, "bytes_moved": 8_000_000} | launches
    return SimpleNamespace(engine=SimpleNamespace(facts={"launches": told}))


@pytest.mark.parametrize(
    ("other", "verdict"),
    [
        ({"total": 90}, KEPT),
        ({"copies": 0, "total": 96}, KEPT),
        ({}, NO_BETTER),
        ({"total": 90, "bytes_moved": 9_000_000}, NO_BETTER),
        ({"total": 90, "transposes": 4}, NO_BETTER),
        ({"total": 110}, NO_BETTER),
        ({"bytes_moved": None}, NO_BETTER),
    ],
)
def test_structure_decides_where_nothing_is_more_and_something_less(other: dict[str, Any], verdict: str) -> None:
    judge = by_structure(SimpleNamespace(name="rtx", executable=lambda: "no GPU"))  # type: ignore[arg-type]
    found = judge.decide(engine(), engine(**other), 0, lambda: 0.0)
    assert found.verdict == verdict and (found.ratio, found.pairs) == (None, 0) and found.why


def test_structure_at_first_sight_is_the_sum_of_what_is_more_and_less() -> None:
    judge = by_structure(SimpleNamespace(name="rtx", executable=lambda: "no GPU"))  # type: ignore[arg-type]
    assert judge.glance(engine(), engine(total=90)) < judge.glance(engine(), engine(total=95)) < 0
    assert judge.glance(engine(), engine(total=90, transposes=4)) > 0 == judge.glance(engine(), engine())


def test_an_engine_that_tells_nothing_and_runs_nowhere_cannot_be_judged(tmp_path: Path) -> None:
    judge = by_structure(SimpleNamespace(name="rtx", executable=lambda: "no GPU"))  # type: ignore[arg-type]
    silent: Any = SimpleNamespace(engine=SimpleNamespace(facts={}))
    with pytest.raises(MachineLacks, match="nothing can be searched for rtx"):
        judge.glance(silent, silent)


@pytest.mark.parametrize(
    ("name", "gpus", "tried"),
    [
        ("onnxruntime", (), False),
        ("inductor", (), False),
        ("inductor", ("current",), True),
        ("tensorrt", ("sm90",), False),
    ],
)
def test_rules_for_our_kernel_are_tried_where_engines_carry_it(
    name: str, gpus: tuple[str, ...], tried: bool, tmp_path: Path
) -> None:
    traced = trace(Block(6, 4).eval(), [TensorSpec("x", (6, 4), torch.float32)])
    selection = Selection("mixer_s32", "fp16", name, "1", gpus=gpus)
    shop = Workshop(traced, None, selection, backends()[name], tmp_path)  # type: ignore[arg-type]
    found = {one.name: one.change for one in shop.changes(SimpleNamespace(fired={}))}  # type: ignore[arg-type]
    assert found.get("fuse_token_mlps") == (PUT_IN if tried else None)
    assert "activate_projections" not in found  # where engines carry the kernel it is on, and left out where it fired
