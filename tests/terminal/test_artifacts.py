"""Tables that are hard to reach from the command line: failed, not finite, on images."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from mlpdeploy.terminal.artifacts import _plugin, print_doctor, print_verification

BUDGET = {"max_relative_error": 6e-3, "min_top1_agreement": 0.99}


def check(batch: int, error: float | None, permuted: float | None = 0.0) -> dict[str, Any]:
    twice = [None if value is None else {"max_relative": value} for value in (error, permuted)]
    reference = {"max_relative": None} if error is None else twice[0]
    return {"batch": batch, "output": "output", "reference": reference, "permuted": twice[1], "agreement": None}


def printed(*stages: dict[str, Any]) -> list[str]:
    base = {"name": "typed graph, PyTorch", "status": "passed", "reason": "", "budget": BUDGET, "checks": []}
    inputs = "images" if any("images" in stage for stage in stages) else "random"
    document = {
        "sizes": [1, 8], "inputs": inputs, "notes": [], "passed": False, "verdict": "the verdict",
        "stages": [base | {"images": None} | stage for stage in stages],
    }  # fmt: skip
    console = Console(file=io.StringIO(), width=80, no_color=True)
    print_verification(console, "net fp16", "random weights from seed 0; no checkpoint was given", document)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert all(len(line) <= 80 for line in lines)
    assert "random weights from seed 0" in lines[1]
    return [" ".join(line.split()) for line in lines]


def test_each_batch_has_its_worst_error_budget_and_verdict() -> None:
    lines = printed({"checks": [check(1, 1e-3, None), check(8, 2e-3, 7.04e-3)]})
    assert "typed graph, PyTorch 1 1.0e-03 6e-03 passed" in lines
    assert "8 7.0e-03 6e-03 failed" in lines


def test_what_is_not_finite_is_no_number() -> None:
    assert "typed graph, PyTorch 8 not finite 6e-03 failed" in printed({"checks": [check(8, None, None)]})


@pytest.mark.parametrize(("top1", "verdict"), [(1.0, "passed"), (0.98, "failed")])
def test_images_fail_by_their_classes_too(top1: float, verdict: str) -> None:
    images = {"reference": {"max_relative": 1e-3}, "agreement": {"top1": top1}, "accuracy": None}
    lines = printed({"checks": [check(1, 1e-3, None)], "images": images})
    assert f"images 1.0e-03 6e-03 {verdict} {top1:.1%}" in lines


def test_a_stage_that_did_not_run_says_why_below() -> None:
    reason = "built, not executed: no NVIDIA GPU"
    lines = printed({"name": "engine", "status": "not executed", "reason": reason}, {"status": "failed"})
    assert "engine - - 6e-03 not executed" in lines and f"engine {reason}" in lines
    assert "typed graph, PyTorch - - 6e-03 failed" in lines


def test_whether_the_engine_carries_the_plugin_and_why() -> None:
    times = {"plugin": 1.0, "body": 2.5}
    shown = "1.000 ms with the plugin, 2.500 ms with the body"
    assert _plugin({"used": True, "reason": None, "milliseconds": times}) == f"used: {shown}"
    assert _plugin({"used": True, "reason": None, "milliseconds": {}}) == "used"
    reason = "TensorRT-RTX has no plugins"
    assert _plugin({"used": False, "reason": reason, "milliseconds": {}}) == f"not used: {reason}"


def test_doctor_has_every_gpu_by_the_number_that_device_takes() -> None:
    first = {"name": "NVIDIA L4", "capability": "sm89", "driver": "13.0"}
    second = {"name": "NVIDIA H200", "capability": "sm90", "driver": "13.0"}
    machine = {"system": "Linux", "python": "3.11", "cpu": {"model": "a CPU", "cores": 2, "features": []}}
    for gpus, lines in (
        ([first], ["GPU NVIDIA L4 (sm89), driver for CUDA 13.0"]),
        (
            [first, second],
            ["GPU 0 NVIDIA L4 (sm89), driver for CUDA 13.0", "GPU 1 NVIDIA H200 (sm90), driver for CUDA 13.0"],
        ),
        ("no NVIDIA GPU", ["GPU no NVIDIA GPU"]),
    ):
        console = Console(file=io.StringIO(), width=100)
        print_doctor(console, {"machine": {**machine, "gpus": gpus}, "versions": {}, "backends": []})
        printed = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
        assert [line for line in printed if line.startswith("GPU")] == lines
