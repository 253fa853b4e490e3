"""The essentials of what each command really prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlpdeploy.evidence.documents.matrix import Step
from mlpdeploy.matrix.found import essentials, facts_of
from tests.conftest import Cli
from tests.evidence import examples

BENCH = json.loads((Path(__file__).parents[1] / "data" / "bench.json").read_text())


@pytest.mark.slow
def test_a_build_and_its_verification(cli: Cli) -> None:
    chosen = ("cam_1d_cam", "--precision", "fp32", "--backend", "onnxruntime", "--batch", "1")
    built = essentials("build", json.loads(cli("build", *chosen, "--json").stdout))
    verified = essentials("verify", json.loads(cli("verify", *chosen, "--quick", "--json").stdout))
    facts = facts_of([Step("build", found=built), Step("verify", found=verified)])
    assert not built["cached"] and built["backend"] == "onnxruntime" and built["build_seconds"] > 0
    assert facts.engine_bytes is not None and facts.engine_bytes > 10_000 and facts.launches is None
    assert verified["passed"] and verified["sizes"] == [1]
    assert facts.of_budget is not None and 0 < facts.of_budget <= 1
    assert 0 <= verified["error"] < 1e-4


def test_a_measurement_and_an_evaluation() -> None:
    timed = essentials("bench", BENCH)
    assert timed["latency_ms"] == {
        str(one["batch"]): one["contenders"][0]["median_ms"] for one in BENCH["measurements"]
    }
    assert timed["threads"] == BENCH["settings"]["threads"] and timed["device"] is None
    on_gpu = {**BENCH, "network": {**BENCH["network"], "device": "cuda"}}
    assert essentials("bench", on_gpu)["device"] == "cuda"
    evaluated = essentials("evaluate", examples.evaluation({"recipe": {"name": "net"}}))
    facts = facts_of([Step("evaluate", found=evaluated), Step("bench", found=timed)])
    assert facts.top1 == 0.7 and facts.latency_ms == timed["latency_ms"] and facts.engine_bytes is None


@pytest.mark.parametrize("command", ["build", "verify", "evaluate", "bench", "regress"])
def test_another_document_is_none(command: str) -> None:
    with pytest.raises(KeyError):
        essentials(command, {"error": {"message": "no"}})
