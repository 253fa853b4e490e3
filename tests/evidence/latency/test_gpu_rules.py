"""What a row of rules tries, in which order, and what is left of it where a change breaks or ends the process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu import crew, networks, rules, timer
from benchmarks.gpu.crew import Row
from benchmarks.gpu.networks import TINY
from mlpdeploy.evidence.latency.timing import Timings

pytest.importorskip("triton", reason="Triton, which the kernel is written in, is not installed")

LABELS = ["with fuse_epilogues", "with b", "without kernel", "without d", "without e"]
SECONDS = {"with fuse_epilogues": 0.9, "with b": 1.2, "without kernel": 0.8, "without d": 0.95, "without e": 0.7}
"""Of a change, where the default rules take 1; changes together take the product."""


class Contest:
    """Changes that take so long, of which some raise or are wrong."""

    wanted = torch.ones(1, 1)

    def __init__(self, broken: Sequence[str] = (), wrong: Sequence[str] = ()) -> None:
        self.broken, self.wrong, self.made = broken, wrong, list[list[str]]()
        self.ours = lambda: torch.ones(1, 1)

    def run(self, labels: list[str]) -> tuple[Callable[[], float], float | None]:
        self.made.append(labels)
        if {*labels} & {*self.broken}:
            raise RuntimeError("no kernel")
        taken = float(np.prod([SECONDS[label] for label in labels]))
        return (lambda: taken), 1.0 if {*labels} & {*self.wrong} else 0.0

    def times(self, **contenders: Callable[[], float]) -> Row:
        seconds = {"ours": 1.0} | {name: run() for name, run in contenders.items()}
        taken = Timings({name: np.full(9, value) for name, value in seconds.items()}, dict.fromkeys(seconds, 1), 0)
        return timer.row(taken, "ours")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Row]]:
    """The row each time that it grows."""

    def run(contest: Contest, known: Row | None = None, most: int = 100) -> list[Row]:
        monkeypatch.setattr(rules, "_contest", lambda *given: contest)
        monkeypatch.setattr(rules, "changes", lambda name, device: [*LABELS])
        given = copy.deepcopy(known or {})
        return [copy.deepcopy(row) for row in rules.measure(given, "net", 1, "cpu", False, 1.0, most)]

    return run


def test_what_was_better_is_measured_at_once_early_and_at_the_end(measured: Callable[..., list[Row]]) -> None:
    contest = Contest()
    *_, early = measured(contest, most=rules.EARLY + 1)
    assert early["left"] == ["without d", "without e", "searched"] and early["tried"] == 4
    # Our operations spelled out do not go with a rule that makes them.
    assert contest.made[3:] == [["without kernel"]]
    assert early["searched"] == ["without kernel"] and ratio(early, "searched") == 0.8
    contest = Contest()
    *_, row = measured(contest, early)
    assert row["left"] == [] and row["searched"] == ["without e", "without kernel", "without d"]
    assert contest.made == [["without d"], ["without e"], ["without e"], row["searched"]]
    assert ratio(row, "searched") == pytest.approx(0.7 * 0.8 * 0.95)
    assert {*row["times"]} == {"ours", *LABELS, "searched"} and not row["failed_changes"]


def ratio(row: Row, label: str) -> float:
    return float(row["times"][label]["ratio"]["value"])


def test_a_change_that_breaks_or_computes_something_else_costs_no_other(measured: Callable[..., list[Row]]) -> None:
    *_, row = measured(Contest(broken=["without kernel"], wrong=["without e"]))
    assert row["failed_changes"] == {"without kernel": "RuntimeError: no kernel"}
    assert row["searched"] == ["with fuse_epilogues", "without d"] and row["errors"]["without e"] == 1.0
    *_, row = measured(Contest(wrong=LABELS))
    assert row["searched"] == [] and "searched" not in row["times"]


def test_what_ended_its_process_is_not_tried_again(measured: Callable[..., list[Row]]) -> None:
    rows = measured(Contest())
    died = next(row for row in rows if row.get("trying") == "with b") | {"ended": "its process ended with SIGSEGV"}
    *_, row = measured(contest := Contest(), died)
    assert row["failed_changes"] == {"with b": "its process ended with SIGSEGV"} and ["with b"] not in contest.made
    assert row["left"] == [] and not {"ended", "trying"} & {*row}
    stopped = next(row for row in rows if row.get("trying") == "with b")
    *_, row = measured(contest := Contest(), stopped)
    assert ["with b"] in contest.made and not row["failed_changes"]


def test_what_promises_most_comes_first() -> None:
    found = rules.changes(TINY, "cpu")
    assert found[:4] == [
        "with reorder_channels", "without activate_projections", "with lay_maps_last", "without kernel",
    ]  # fmt: skip
    assert {"without project_segments", "with hoist_reweighting"} <= {*found}
    on = networks.load(TINY, "cpu").rules
    assert all((label.split()[1] in on) == label.startswith("without") for label in found if label != rules.KERNEL)


def test_the_kernel_left_out_is_another_graph() -> None:
    network: Any = networks.load(TINY, "cpu")
    assert networks.has_kernel(network.ours) and not networks.has_kernel(networks.without_kernel(network.ours))


def test_what_is_timed_has_its_turn_and_configurations_are_compiled_before(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Pipe:
        def send(self, message: tuple[str, Any]) -> None:
            said.append(message[0])

        def recv(self) -> str:
            return "go"

    def run() -> None:
        said.append("run")

    def bench(function: Callable[[], Any], **options: object) -> float:
        function()
        return 1e3

    monkeypatch.setattr(crew, "_asks", Pipe())
    monkeypatch.setattr("triton.testing.do_bench", bench)
    monkeypatch.setattr("fcntl.flock", None)  # who stands still may hold it
    with timer.tuned_alone():
        taken: Any = timer.kernels.load("segment_grouped_projection.launch").tuning.seconds
        assert taken(run) == 1.0
    assert said == ["run", "turn", "run", "over"]
    said.clear()
    timer.measure({"": run}, seconds=0, rounds=5)
    assert said == ["turn", *["run"] * 8, "over"]


def test_which_rules_fire_is_found_without_a_plan_of_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    def planned(*given: object, **options: object) -> None:
        raise AssertionError("a precision is planned")

    networks.load(TINY, "cpu")
    rules._fired.cache_clear()
    monkeypatch.setattr(networks, "plan", planned)
    assert rules.changes(TINY, "cpu")


def test_memory_of_what_was_tried_is_given_back(
    measured: Callable[..., list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = list[None]()
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given.append(None))
    measured(Contest())
    assert len(given) == len(LABELS) + 2
