"""`mlpdeploy build --tactics`: build routes, here those of a backend that stands in for TensorRT, proved and kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mlpdeploy.artifact.decisions import FILE, KEPT, NO_BETTER, REFUSED, SET, Ratio
from mlpdeploy.engine.backend import backends
from mlpdeploy.errors import BuildError, MachineLacks
from mlpdeploy.search import judging
from tests.terminal.conftest import Said

NETWORK = """
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(1), nn.Linear(12, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 3))
"""
ORT = (
    "tactics_nets:net", "--input-shape", "3,2,2", "--batch", "1:2:3", "--precision", "fp32", "--backend", "onnxruntime",
)  # fmt: skip
FOLDER = Path("artifacts/tactics_nets-net/fp32/onnxruntime")
FAST, SLOW, WRONG, BROKEN = "-fast=on", "-slow=on", "-wrong=on", "-broken=on"


def spoiled(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with other weights."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    for tensor in other.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.1), tensor.name))
    return other


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """ONNX Runtime with build routes; the routes of its builds, in order."""
    kind, routes = type(backends()["onnxruntime"]), list[str]()
    build: Callable[..., Any] = kind._build

    def built(self: Any, emitted: Any, request: Any, engine: Path, progress: Any) -> Any:
        routes.append(request.route)
        if BROKEN in request.route:
            raise BuildError("the compiler refuses it")
        wrong = WRONG in request.route
        return build(
            self, replace(emitted, model=spoiled(emitted.model)) if wrong else emitted, request, engine, progress
        )

    monkeypatch.setattr(kind, "_build", built)
    monkeypatch.setattr(kind, "has_routes", True)
    monkeypatch.setattr(kind, "routes", lambda self: (SLOW, WRONG, FAST, BROKEN))

    def decide(self: object, incumbent: Any, candidate: Any, *_: object) -> judging.Judgement:
        better = FAST in candidate.selection.route and FAST not in incumbent.selection.route
        return judging.Judgement(KEPT if better else NO_BETTER, Ratio(0.9, None, 0.95), 10)

    monkeypatch.setattr(judging._Time, "decide", decide)
    monkeypatch.setattr(judging._Time, "glance", lambda *_: -0.01)
    (tmp_path / "tactics_nets.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return routes


def built(said: Said, *words: str) -> Any:
    return json.loads(said("build", *ORT, *words, "--json")[0])


def trials(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in manifest["decided"]["decision"]["trials"]}


@pytest.mark.slow
def test_routes_are_built_proved_judged_and_remembered(said: Said, asked: list[str]) -> None:
    found = built(said, "--tactics", "500")
    tried = trials(found["manifest"])
    assert {name: one["verdict"] for name, one in tried.items()} == {
        SLOW: NO_BETTER, WRONG: REFUSED, FAST: KEPT, BROKEN: REFUSED,
    }  # fmt: skip
    assert tried[WRONG]["why"].startswith("engine: ") and tried[BROKEN]["why"] == "the compiler refuses it"
    assert {one["change"] for one in tried.values()} == {SET} and asked[0] == "" and asked[-1] == FAST
    # It is no option of the user's, and later builds take it without being asked.
    assert found["manifest"]["selection"]["route"] == ""
    assert built(said, "--tactics", "500")["cached"] and built(said)["cached"]
    built(said, "--force")
    assert asked[-1] == FAST
    built(said, "--build-route", "-fast=off")
    assert asked[-1] == "-fast=off"
    built(said)
    assert said("verify", *ORT, "--quick")
    assert FAST in said("inspect", str(FOLDER))[0]

    # Rules are searched beside them, with that route, and forget nothing of it.
    both = built(said, "--search", "500")["manifest"]
    assert trials(both).items() >= tried.items() and len(trials(both)) > len(tried)
    assert asked[-1] == FAST and built(said, "--search", "500", "--tactics", "500")["cached"]
    decided = json.loads((Path("artifacts") / FILE).read_text())["decisions"]
    assert len(decided) == 1 and decided[0]["decision"]["tactics"] > 0 < decided[0]["decision"]["seconds"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [("--softmax", "--topk", "2"), ("--precision", "int8", "--calibration", "random", "--no-worth")]
)
def test_an_engine_that_gives_answers_or_multiplies_codes_is_proved_too(
    said: Said, asked: list[str], words: tuple[str, ...]
) -> None:
    tried = trials(built(said, *words, "--tactics", "500")["manifest"])
    verdicts = {name: one["verdict"] for name, one in tried.items()}
    assert verdicts == {SLOW: NO_BETTER, WRONG: REFUSED, FAST: KEPT, BROKEN: REFUSED}, tried


@pytest.mark.slow
def test_what_the_user_sets_is_not_tried(said: Said, asked: list[str]) -> None:
    found = built(said, "--tactics", "500", "--build-route", f"{SLOW} -fast=off")
    assert trials(found["manifest"]).keys() == {WRONG, BROKEN}
    assert asked[0] == asked[-1] == f"{SLOW} -fast=off"


@pytest.mark.slow
def test_a_library_that_offers_none_is_one_line_and_nothing_is_built(
    said: Said, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(self: object) -> None:
        raise MachineLacks("TensorRT 11.4.0 offers no build routes on this platform: drop --tactics")

    before = built(said)["manifest"]
    monkeypatch.setattr(type(backends()["onnxruntime"]), "routes", none)
    asked.clear()
    error = said("build", *ORT, "--tactics", code=3)[1].strip().splitlines()[-1]
    assert error == "error: TensorRT 11.4.0 offers no build routes on this platform: drop --tactics"
    assert not asked and json.loads((FOLDER / "manifest.json").read_text()) == before
