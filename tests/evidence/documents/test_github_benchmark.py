"""What github-action-benchmark reads: names that stay from run to run, one number each, and text that is one line."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest

from mlpdeploy import commands
from mlpdeploy.evidence.documents.bench import read
from mlpdeploy.evidence.documents.github_benchmark import benchmarks
from tests.terminal.test_cli import in_process

BENCH = read(Path(__file__).parents[2] / "data" / "bench.json")
GATE = {"name": "latency", "label": "latency", "verdict": "passed", "unit": "ms", "batch": 1, "reason": ""}
GATE |= {"baseline": 1.0, "candidate": 1.0, "change": 0.0, "limit": 0.03, "low": -0.01, "high": 0.01}


def regress(*measurements: dict[str, Any]) -> dict[str, Any]:
    baseline = {"reference": "git:main", "commit": None, "created": "now", "differs": []}
    settings = BENCH["settings"] | {"undecided": "fail"}
    found = {"kind": "regress", "verdict": "passed", "gates": [GATE], "baseline": baseline, "settings": settings}
    return BENCH | found | {"measurements": list(measurements)}


def entries(document: dict[str, Any]) -> list[dict[str, Any]]:
    """As the action parses them: `name` and `unit` are text and `value` a number, `range` and `extra` perhaps text."""
    found = json.loads(json.dumps(benchmarks(document), allow_nan=False))
    for entry in found:
        assert isinstance(entry["value"], float) and {"name", "unit", "value"} <= entry.keys()
        assert entry.keys() <= {"name", "unit", "value", "range", "extra"}
        assert all(isinstance(value, str) for key, value in entry.items() if key != "value")
    return found


def test_of_a_bench_the_engine_is_told_at_each_batch_size() -> None:
    found = entries(BENCH)
    assert [one["name"] for one in found] == [f"mixer_s32 fp32 with onnxruntime, batch {n}, 1 thread" for n in (1, 4)]
    for entry, measured in zip(found, BENCH["measurements"], strict=True):
        assert entry["value"] == median(measured["contenders"][0]["medians_ms"]) and entry["unit"] == "ms"
        assert entry["range"].startswith("± ") and 10 < float(entry["range"][2:]) < 50
        assert entry["extra"].splitlines()[1:3] == [BENCH["network"]["weights"], "8 loads"]


def test_of_a_regress_the_candidate_is_told_under_the_same_name() -> None:
    (found,) = entries(regress({"batch": 4, "baseline_ms": [9.0, 9.0], "medians_ms": [1.0, 3.0]}))
    assert (found["name"], found["value"], found["range"]) == (entries(BENCH)[1]["name"], 2.0, "± 1.41")


def test_one_load_has_no_range_and_a_gpu_no_threads() -> None:
    document = regress({"batch": 1, "baseline_ms": [2.0], "medians_ms": [2.0]})
    gpu = {"name": "A GPU", "capability": "sm90", "driver": "13.0"}
    document |= {"network": BENCH["network"] | {"device": "cuda"}, "machine": BENCH["machine"] | {"gpu": gpu}}
    (found,) = entries(document)
    assert found["name"].endswith("onnxruntime, batch 1") and "range" not in found
    assert found["extra"].splitlines()[0] == "A GPU" and "1 load\n" in found["extra"]


def test_names_of_others_stay_one_line_and_control_nothing() -> None:
    evil = "\x1b[2Jnet\r\n::error::forged\u202e"
    (found,) = entries(
        regress({"batch": 1, "baseline_ms": [2.0], "medians_ms": [2.0]})
        | {"network": BENCH["network"] | {"name": evil, "weights": evil}}
    )
    assert found["name"].isprintable() and len(found["extra"].splitlines()) == 4


@pytest.mark.parametrize("command", ["bench", "regress"])
def test_the_commands_write_it(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    timed = {"batch": 1, "baseline_ms": [2.0], "medians_ms": [2.0]}
    document, untimed = (BENCH, None) if command == "bench" else (regress(timed), regress())
    words = [command, "mixer_s32", "--precision", "fp32", "--backend", "onnxruntime"]
    words += ["--baseline", "git:main"] if command == "regress" else []

    def run(told: dict[str, Any], *more: str) -> tuple[int, str]:
        found = SimpleNamespace(to_json=lambda: told, passed=True)
        monkeypatch.setattr(commands, command, lambda *_, **__: found)
        return in_process(*words, *more), capsys.readouterr().err

    code, said = run(document, "--github-benchmark", "some/where.json")
    assert (code, said) == (0, "") and json.loads(Path("some/where.json").read_text()) == benchmarks(document)
    code, said = run(document, "--github-benchmark", "one.json", "--save", "one.json")
    assert code == 2 and "two results are to be written there" in said and not Path("one.json").exists()
    code, said = run(document, "--github-benchmark", ".")
    assert code == 2 and "nothing was measured yet" in said
    if untimed is not None:
        code, said = run(untimed, "--github-benchmark", "none.json", "--json")
        assert (code, said.count("\n")) == (0, 1) and json.loads(Path("none.json").read_text()) == []
        assert "warning: none.json: an empty list, since nothing was timed" in said
