"""Decisions that are kept: for whom they count, who counts more, and files that are none."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from mlpdeploy.artifact import decisions
from mlpdeploy.artifact.decisions import (
    FILE,
    KEPT,
    LEFT_OUT,
    NO_DEVICE,
    PUT_IN,
    SET,
    UNTRIED,
    Case,
    Decision,
    Effort,
    Ratio,
    Trial,
    applied,
    remember,
    remembered,
    said_by,
    suffices,
)
from mlpdeploy.engine import form
from mlpdeploy.engine.backend import backends
from mlpdeploy.errors import ArtifactError
from mlpdeploy.graph.tracing.trace import TensorSpec, Traced, trace
from mlpdeploy.selection import Selection

CASE = Case("ab12", "openvino", {"openvino": "1"}, "a CPU, 2 cores", "fp32", "8-15")
TRIALS = (
    Trial("gather_shifts", LEFT_OUT, KEPT, Ratio(0.945, None, 0.953), 10),
    Trial("flatten_grids", LEFT_OUT, KEPT),
    Trial("pick_parts", PUT_IN, KEPT, Ratio(0.98, 0.97, 0.99), 14),
    Trial("fold_affine", LEFT_OUT, "no better", Ratio(1.1, 1.05, None), 6),
    Trial("merge_reshapes", LEFT_OUT, "refused", why="it cannot be built"),
)
DECISION = Decision("mixer_s32", "2026-01-01T00:00:00+00:00", "time", 8, 61.5, TRIALS)
SELECTION = Selection("mixer_s32", "fp32", "openvino")


def at(out: Path, **said: tuple[str, ...] | str) -> Selection:
    return replace(SELECTION, out=out, **said)  # type: ignore[arg-type]


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    assert remembered(at(tmp_path), CASE) is None
    assert remember(tmp_path, CASE, DECISION) == tmp_path / FILE
    assert remembered(at(tmp_path), CASE) == DECISION
    again = replace(DECISION, seconds=10.0)
    remember(tmp_path, CASE, again)
    assert remembered(at(tmp_path), CASE) == again
    (entry,) = json.loads((tmp_path / FILE).read_text())["decisions"]
    assert "beside" not in entry["decision"]  # versions before it read the file, too: a baseline's


@pytest.mark.parametrize(
    "other",
    [
        {"graph": "cd"},
        {"backend": "onnxruntime"},
        {"versions": {"openvino": "2"}},
        {"device": "a CPU, 4 cores"},
        {"precision": "fp16"},
        {"batch": "1"},
    ],
)
def test_in_another_case_nothing_is_decided(tmp_path: Path, other: dict[str, object]) -> None:
    remember(tmp_path, CASE, DECISION)
    assert remembered(at(tmp_path), replace(CASE, **other)) is None  # type: ignore[arg-type]


def test_a_selection_takes_what_is_kept_and_what_it_says_itself_counts_more() -> None:
    found = applied(SELECTION, DECISION)
    assert found.disabled_rules == ("flatten_grids", "gather_shifts") and found.enabled_rules == ("pick_parts",)
    said = replace(SELECTION, enabled_rules=("gather_shifts",), disabled_rules=("pick_parts",))
    found = applied(said, DECISION)
    assert found.disabled_rules == ("flatten_grids", "pick_parts") and found.enabled_rules == ("gather_shifts",)
    assert applied(SELECTION, None) is SELECTION


def test_a_rule_that_there_is_no_more_is_left_alone() -> None:
    other = replace(DECISION, trials=(*TRIALS, Trial("a_rule_of_old", LEFT_OUT, KEPT)))
    assert applied(SELECTION, other) == applied(SELECTION, DECISION)


def test_a_form_is_never_put_in_and_what_an_engine_needs_is_never_left_out() -> None:
    forms = Trial("flatten_rows", PUT_IN, KEPT), Trial("fill_ranks", LEFT_OUT, KEPT)
    other = replace(DECISION, trials=(*TRIALS, *forms))
    assert applied(SELECTION, replace(other, trials=(*TRIALS, forms[0]))) == applied(SELECTION, DECISION)
    needed = next(iter(form.needed(backends()["onnxruntime"].forms)))
    selection, wrong = replace(SELECTION, backend="onnxruntime"), Trial(needed, LEFT_OUT, KEPT)
    assert applied(selection, replace(DECISION, trials=(*TRIALS, wrong))) == applied(selection, DECISION)


def test_a_rule_is_not_left_out_and_put_in() -> None:
    both = Trial("pick_parts", LEFT_OUT, KEPT), Trial("pick_parts", PUT_IN, KEPT)
    found = applied(SELECTION, replace(DECISION, trials=both))
    assert (found.disabled_rules, found.enabled_rules) == (("pick_parts",), ())


def test_what_was_searched_beside_rules_that_were_chosen_by_hand_counts_beside_them_alone(tmp_path: Path) -> None:
    without = replace(SELECTION, disabled_rules=("merge_reshapes",))
    special = replace(DECISION, trials=TRIALS[:1], beside=said_by(without))
    remember(tmp_path, CASE, special)
    assert remembered(at(tmp_path), CASE) is None
    assert remembered(at(tmp_path, disabled_rules=("merge_reshapes",)), CASE) == special
    assert remembered(at(tmp_path, enabled_rules=("merge_reshapes",)), CASE) is None
    remember(tmp_path, CASE, DECISION)
    assert remembered(at(tmp_path), CASE) == DECISION
    both = ("fold_affine", "merge_reshapes")
    assert remembered(at(tmp_path, disabled_rules=both), CASE) == special
    assert remembered(at(tmp_path, disabled_rules=both[:1], route="-a=1"), CASE) == DECISION
    again = replace(special, seconds=1.0)
    remember(tmp_path, CASE, again)
    assert remembered(at(tmp_path, disabled_rules=both), CASE) == again
    assert len(json.loads((tmp_path / FILE).read_text())["decisions"]) == 2


@pytest.mark.parametrize("place", ["decision", "trial", "ratio"])
def test_what_a_later_version_has_beside_is_left_alone(tmp_path: Path, place: str) -> None:
    path = remember(tmp_path, CASE, DECISION)
    document = json.loads(path.read_text())
    decision = document["decisions"][0]["decision"]
    {"decision": decision, "trial": decision["trials"][0], "ratio": decision["trials"][0]["ratio"]}[place]["new"] = [1]
    path.write_text(json.dumps(document))
    assert remembered(at(tmp_path), CASE) == DECISION
    assert decisions.of_manifest({"decided": {"decision": decision}}) == DECISION


def test_a_file_of_another_version_is_one_line_and_stays(tmp_path: Path) -> None:
    path = remember(tmp_path, CASE, DECISION)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 2, "decisions": "in another form"}))
    before = path.read_text()
    for use in (lambda: remembered(at(tmp_path), CASE), lambda: remember(tmp_path, CASE, DECISION)):
        with pytest.raises(ArtifactError, match=r"has schema 2, this mlpdeploy reads 1: remove it, and search again$"):
            use()
    assert path.read_text() == before


def test_a_search_that_tried_all_or_had_as_long_suffices() -> None:
    cut = replace(DECISION, trials=(*TRIALS, Trial("convolve_lines", LEFT_OUT, UNTRIED)))
    assert suffices(DECISION, Effort(1000)) and suffices(None, Effort()) and suffices(cut, Effort())
    assert suffices(cut, Effort(60)) and not suffices(None, Effort(10)) and not suffices(cut, Effort(120))


ROUTES = (Trial("-copy_ppg=off", SET, KEPT), Trial("-tile=2", SET, KEPT), Trial("-tile=3", SET, KEPT))


def test_rules_and_build_routes_are_searched_each_for_itself() -> None:
    assert not suffices(DECISION, Effort(tactics=1)) and not suffices(DECISION, Effort(10, 10))
    both = replace(DECISION, trials=(*TRIALS, *ROUTES), tactics=9.0)
    assert suffices(both, Effort(1000, 1000))
    assert (both.of(routes=True), both.of(routes=False)) == (ROUTES, TRIALS)
    cut = replace(both, trials=(*both.trials, Trial("-tile=4", SET, UNTRIED)))
    assert suffices(cut, Effort(1000, 9)) and not suffices(cut, Effort(tactics=10))
    assert not suffices(replace(both, trials=ROUTES, seconds=0.0), Effort(1))  # routes alone were tried


def test_of_a_setting_the_last_value_that_was_kept_counts_and_the_users_own_most() -> None:
    odd = (Trial("no route", SET, KEPT), Trial("-a=1 -b=2", SET, KEPT), Trial("-c=1", SET, "no better"))
    decided = replace(DECISION, trials=(*ROUTES, *odd))
    assert applied(SELECTION, decided).route == "-copy_ppg=off -tile=3"
    assert applied(replace(SELECTION, route="-tile=1"), decided).route == "-copy_ppg=off -tile=1"


def test_routes_come_back_and_a_file_of_before_them_is_read(tmp_path: Path) -> None:
    decided = replace(DECISION, trials=(*TRIALS, *ROUTES), tactics=9.0)
    path = remember(tmp_path, CASE, decided)
    assert remembered(at(tmp_path), CASE) == decided
    document = json.loads(path.read_text())
    del document["decisions"][0]["decision"]["tactics"]
    path.write_text(json.dumps(document))
    assert remembered(at(tmp_path), CASE) == replace(decided, tactics=0.0)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema": 1, "decisions": [{}]}', '{"schema": 1, "decisions": [', "\0", "[" * 10000],
)
def test_a_file_that_is_none_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ArtifactError, match="remove it, and search again") as raised:
        remembered(at(tmp_path), CASE)
    assert str(tmp_path / FILE) in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(ArtifactError):
        remember(tmp_path, CASE, DECISION)
    assert (tmp_path / FILE).read_text() == text  # nothing that was there is lost


def test_threads_that_remember_at_once_lose_nothing(tmp_path: Path) -> None:
    cases = [replace(CASE, graph=str(number)) for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda case: remember(tmp_path, case, DECISION), cases))
    assert all(remembered(at(tmp_path), case) == DECISION for case in cases)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == [FILE]


def test_another_folder_takes_them_over(tmp_path: Path) -> None:
    decisions.copy(tmp_path / "none", tmp_path / "other")
    assert not (tmp_path / "other").exists()
    remember(tmp_path, CASE, DECISION)
    decisions.copy(tmp_path, tmp_path / "other")
    assert remembered(at(tmp_path / "other"), CASE) == DECISION


@pytest.mark.parametrize(("batch", "words"), [("1", "1"), ("1:2:3", "2-3"), ("1:7:8", "4-7"), ("8:8:64", "8-15")])
def test_a_case_has_the_batch_that_the_engine_is_tuned_for(batch: str, words: str) -> None:
    found = decisions.case_of(replace(SELECTION, batch=batch), backends()["openvino"], "ab")
    assert found.batch == words and found.versions.keys() == {"openvino"} and found.device.endswith("cores")


def test_where_engines_cannot_run_the_device_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backends()["tensorrt-rtx"]
    monkeypatch.setattr(type(backend), "executable", lambda self: "no GPU")
    assert decisions.case_of(SELECTION, backend, "ab").device == NO_DEVICE
    # An engine for other GPUs is another one.
    named = [replace(SELECTION, gpus=gpus) for gpus in (("sm75",), ("sm86", "sm120"), ("sm120", "sm86"))]
    devices = [decisions.case_of(one, backend, "ab").device for one in named]
    assert devices == [f"{NO_DEVICE}, for {gpus}" for gpus in ("sm75", "sm120, sm86", "sm120, sm86")]


def traced(network: nn.Module, size: int = 8) -> Traced:
    return trace(network.eval().requires_grad_(False), [TensorSpec("x", (size,), torch.float32)])


def test_a_graph_is_its_operations_and_shapes_and_not_its_numbers() -> None:
    first = decisions.structure(traced(nn.Sequential(nn.Linear(8, 4), nn.GELU())))
    assert decisions.structure(traced(nn.Sequential(nn.Linear(8, 4), nn.GELU()))) == first
    others = [
        traced(nn.Sequential(nn.Linear(8, 5), nn.GELU())),
        traced(nn.Sequential(nn.Linear(8, 4), nn.ReLU())),
        traced(nn.Sequential(nn.Linear(8, 4, bias=False), nn.GELU())),
        traced(nn.Sequential(nn.Linear(9, 4), nn.GELU()), 9),
    ]
    assert len({first, *map(decisions.structure, others)}) == 5
