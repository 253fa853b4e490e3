"""The ladder must name the stage that broke: each test breaks one stage of a small network and asks which it was."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlpdeploy.errors import InputError
from mlpdeploy.evidence.proof import ladder
from mlpdeploy.evidence.proof import verify as ladder_verify
from mlpdeploy.evidence.proof.compare import compare
from mlpdeploy.evidence.proof.ladder import (
    ALONE,
    EMITTED,
    ENGINE,
    ITSELF,
    REWRITTEN,
    SIZES,
    TRACED,
    TWICE,
    TYPED,
    Budget,
    Check,
    judge,
)
from mlpdeploy.evidence.proof.verify import verify
from mlpdeploy.graph.precision.typed import Typed
from mlpdeploy.graph.rewrite import Rewritten, rewrite, rewrite_as
from mlpdeploy.graph.rules import LAYOUT
from mlpdeploy.graph.tracing.trace import Traced, trace
from tests.evidence.proof.cases import BATCH, FP16, Case, Half, Net, Silent, X, by_name, make_onnx, run_with


def test_a_sound_network_passes_every_stage_at_every_batch(case: Case) -> None:
    found = case.verify()
    assert found.passed and found.verdict() == "passed" and found.notes == ()
    assert [stage.name for stage in found.stages] == [*ITSELF, REWRITTEN, TYPED, EMITTED, ENGINE]
    for stage in found.stages:
        batches = [check.batch for check in stage.checks]
        assert batches == {REWRITTEN: [1, 2], TWICE: [3], ALONE: [3], TRACED: [3]}.get(stage.name, [1, 4, 11])
        if stage.name not in (TWICE, SIZES, TRACED):
            assert [check.permuted is not None for check in stage.checks] == [batch > 1 for batch in batches]
    exact, low = (by_name(found, name).max_relative for name in (REWRITTEN, TYPED))
    assert exact is not None and low is not None and exact < 1e-14 and 1e-5 < low < 3e-3


def test_the_same_seed_gives_the_same_document(case: Case) -> None:
    first, second = (json.loads(json.dumps(case.verify().to_json(), allow_nan=False)) for _ in range(2))
    for stage in (*first["stages"], *second["stages"]):
        del stage["seconds"]
    assert first == second


def test_an_engine_that_cannot_run_here_is_not_called_passed(case: Case) -> None:
    found = replace(case, engine=None).verify()
    assert found.passed and found.stages[-1].status == ladder.NOT_EXECUTED
    assert found.stages[-1].reason == "built, not executed: no NVIDIA GPU"
    assert found.verdict() == "passed (engine not executed)"
    with pytest.raises(ValueError, match="reason"):
        verify(case.network, case.rewritten, case.typed, case.model, None, None, BATCH, FP16, None, 0, Silent())


def test_a_rewrite_that_is_wrong_by_a_millionth_is_found_in_float64(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(traced: Traced, other: Rewritten) -> Rewritten:
        for name, tensor in traced.module.named_parameters():
            if name == "head.weight":
                tensor.data *= 1 + 1e-6
        return rewrite_as(traced, other)

    monkeypatch.setattr("mlpdeploy.evidence.proof.verify.rewrite_as", wrong)
    found = case.verify()
    assert not found.passed and found.first_failed is not None and found.first_failed.name == REWRITTEN
    tolerance = found.first_failed.passing_tolerance
    assert tolerance is not None and 1e-7 < tolerance < 2e-6
    assert f"{tolerance:.1e} would have passed" in found.verdict()
    assert found.to_json()["passing_tolerance"] == tolerance


def test_the_float64_stage_is_about_the_graph_that_was_rewritten(case: Case) -> None:
    plain = rewrite(trace(case.network, [X]), [LAYOUT])
    found = replace(case, rewritten=replace(plain, report=case.rewritten.report)).verify()
    assert found.first_failed is not None and found.first_failed.name == REWRITTEN
    assert "another graph" in found.first_failed.reason
    assert replace(case, rewritten=plain).verify().passed


def test_code_that_asks_for_float32_by_name_is_still_proved_in_float64() -> None:
    class Upcasts(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).float() * torch.full((7,), 1 / 3, dtype=torch.float32)

    torch.manual_seed(1)
    network = Upcasts().eval().requires_grad_(False)
    rewritten = rewrite(trace(network, [X]))
    typed = Typed(network, "fp32", rewritten.inputs, rewritten.outputs)  # type: ignore[arg-type]
    model = make_onnx(network)
    model.graph.output[0].name = model.graph.node[-1].output[0] = "output"
    found = verify(network, rewritten, typed, model, None, "none", BATCH, FP16, None, 0, Silent())
    stage = by_name(found, REWRITTEN)
    assert stage.status == "passed" and stage.max_relative is not None and stage.max_relative < 1e-13


def test_a_missing_cast_fails_the_typed_graph_and_the_later_stages_still_run(case: Case) -> None:
    class Uncast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return case.typed.module.network(x)  # type: ignore[operator, union-attr]

    found = replace(case, typed=replace(case.typed, module=Uncast())).verify()  # type: ignore[arg-type]
    assert found.first_failed is not None and found.first_failed.name == TYPED
    assert "raised TypeError: aten.layer_norm.default mixes" in found.first_failed.reason
    assert found.first_failed.passing_tolerance is None
    assert [stage.status for stage in found.stages[-4:]] == ["passed", "failed", "passed", "passed"]


def test_a_wrong_weight_in_the_file_fails_the_emitted_stage(case: Case) -> None:
    other = copy.deepcopy(case.network)
    other.tokens.bias.data += 0.3
    found = replace(case, model=make_onnx(Half(other))).verify()
    assert found.first_failed is not None and found.first_failed.name == EMITTED
    assert "output 'y' at batch 1" in found.verdict()


def broadcast_first(x: Tensor) -> Tensor:
    return x[:1].expand_as(x)


def swap_last_two(x: Tensor) -> Tensor:
    return x if len(x) < 11 else torch.cat([x[:-2], x[-1:], x[-2:-1]])


def leak_neighbour(x: Tensor) -> Tensor:
    return x + 0.1 * x.roll(1, 0) * (len(x) > 1)


@pytest.mark.parametrize(("bug", "batch"), [(broadcast_first, 4), (swap_last_two, 11), (leak_neighbour, 4)])
def test_rows_that_meet_inside_the_engine_are_found(case: Case, bug: Callable[[Tensor], Tensor], batch: int) -> None:
    found = replace(case, engine=run_with(lambda x: case.typed.module(bug(x)))).verify()
    assert found.first_failed is not None and found.first_failed.name == ENGINE
    assert f"at batch {batch}" in found.verdict()


def test_one_nan_in_the_largest_batch_is_found_and_no_tolerance_is_offered(case: Case) -> None:
    def engine(x: Tensor) -> Tensor:
        y = case.typed.module(x).clone()
        if len(x) == 11:
            y[7, 3] = float("nan")
        return y

    found = replace(case, engine=run_with(engine)).verify()
    assert "holds NaN or infinity in row 7" in found.verdict() and "batch 11" in found.verdict()
    assert found.to_json()["passing_tolerance"] is None
    json.dumps(found.to_json(), allow_nan=False)


def test_an_output_of_another_shape_fails_its_stage(case: Case) -> None:
    found = replace(case, engine=run_with(lambda x: case.typed.module(x)[:, :3])).verify()
    assert found.first_failed is not None and "shape" in found.first_failed.reason


def test_permuted_rows_are_judged_even_where_the_values_pass() -> None:
    near, far = compare(np.ones((2, 2)), np.ones((2, 2))), compare(np.ones((2, 2)) * 1.1, np.ones((2, 2)))
    assert judge((Check(2, "y", near, far, None),), None, FP16).startswith("permuting the rows does not permute")
    assert judge((Check(2, "y", near, near, None),), None, FP16) == ""


def test_a_network_that_gives_nan_cannot_be_a_reference(case: Case) -> None:
    broken = copy.deepcopy(case.network)
    nn.init.constant_(broken.head.bias, float("nan"))
    with pytest.raises(InputError, match="own output"):
        replace(case, network=broken).verify()


def test_tf32_is_judged_as_fp32_where_a_cpu_computes_it(case: Case) -> None:
    found = case.verify(budget=Budget(0.5, 0.0), cpu_budget=Budget(1e-7, 0.0))
    assert [stage.status for stage in found.stages[-4:]] == ["passed", "failed", "failed", "passed"]


def test_extreme_rows_go_through_every_rung(case: Case) -> None:
    found = case.verify()
    rows = {"zeros", "a constant", "one hot element", "100 times larger", "an ordinary one beside them"}
    for stage in found.stages:
        ran = stage.name not in (TWICE, SIZES, TRACED)
        assert {one.row for one in stage.extremes} == (rows if ran else set())
        assert all(one.passed and one.error < 3e-3 for one in stage.extremes)
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert {one["row"] for one in document["stages"][-1]["extremes"]} == rows


@pytest.mark.parametrize("rung", [REWRITTEN, TYPED, EMITTED, ENGINE])
def test_nan_for_zeros_fails_the_rung_that_made_it(case: Case, rung: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`(x - mean) / (std + 1e-8)` of which the 1e-8 was lost."""

    class Lost(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: Tensor) -> Any:
            found = self.module(x)
            size = x.float().flatten(1).abs().sum(1, keepdim=True)
            return found * (size / size) if isinstance(found, Tensor) else (found[0] * (size / size),)

    broken = case
    if rung == REWRITTEN:
        whole = ladder_verify._rewritten_again
        monkeypatch.setattr(ladder_verify, "_rewritten_again", lambda *given: Lost(whole(*given)))
    elif rung == TYPED:
        broken = replace(case, typed=replace(case.typed, module=Lost(case.typed.module)))  # type: ignore[arg-type]
    elif rung == EMITTED:
        broken = replace(case, model=make_onnx(Lost(case.typed.module)))
    else:
        broken = replace(case, engine=run_with(Lost(case.typed.module)))
    found = broken.verify()
    assert [stage.name for stage in found.stages if stage.status == "failed"] == [rung]
    said = f"{rung}: output 'y' for the row 'zeros' holds NaN or infinity, where the network's own is finite"
    assert found.verdict() == said and found.to_json()["passing_tolerance"] is None


def test_what_the_network_itself_makes_no_number_is_said_and_not_asked_for() -> None:
    class Log(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x.flatten(1).abs().sum(1, keepdim=True).log()

    torch.manual_seed(0)
    network = Log().eval().requires_grad_(False)
    rewritten = rewrite(trace(network, [X]))
    outputs = (replace(rewritten.outputs[0], name="y"),)
    typed = Typed(network, "fp32", rewritten.inputs, outputs)  # type: ignore[arg-type]
    found = Case(network, rewritten, typed, make_onnx(network), run_with(lambda x: network(x).nan_to_num())).verify()
    assert found.passed, found.verdict()
    assert found.notes[0].startswith("output 'y' of the network itself is not finite for the row 'zeros'")
    assert all(one.row != "zeros" for stage in found.stages for one in stage.extremes)
