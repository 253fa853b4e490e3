"""The pure parts of the measuring scripts; the measuring itself is run by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import build, common, cpu, graph, install, rules, search, zoo
from benchmarks.train_digits import augment
from mlpdeploy.engine.backends.tensorrt.parsed import Counts, FunctionBody, ParsedNetwork
from mlpdeploy.engine.host import cpu_model
from mlpdeploy.evidence.latency import machine
from mlpdeploy.evidence.latency.timing import Timings
from mlpdeploy.graph.rewrite import all_rules
from mlpdeploy.graph.rules import LAYOUT


def test_a_result_names_its_machine_and_is_strict_json(tmp_path: Path) -> None:
    path = common.write("x", {"a": 1.5}, {"threads": 1}, tmp_path / "results")
    found = json.loads(path.read_text())
    assert found["results"] == {"a": 1.5} and found["settings"] == {"threads": 1}
    assert found["machine"]["cpu"] and found["machine"]["cores"] >= 1 and "torch" in found["machine"]["versions"]
    with pytest.raises(ValueError, match="JSON compliant"):
        common.write("x", {"a": float("nan")}, {}, tmp_path / "results")
    assert json.loads(path.read_text()) == found


def test_rows_of_one_origin_are_kept_together_and_others_aside(tmp_path: Path) -> None:
    common.write("x", {"a": 1, "b": 2}, {"threads": 1}, tmp_path)
    path = common.write("x", {"b": 3}, {"threads": 1}, tmp_path)
    assert json.loads(path.read_text())["results"] == {"a": 1, "b": 3}
    common.write("x", {"c": 4}, {"threads": 2}, tmp_path)
    assert json.loads(path.read_text())["results"] == {"c": 4}
    assert json.loads((tmp_path / "x.previous.json").read_text())["results"] == {"a": 1, "b": 3}


def test_rows_that_stand_alone_stay_beside_those_of_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common.write("x", {"a": {"layers": 1}, "b": {"layers": 2}}, {}, tmp_path, alone=True)
    here = machine.fingerprint()
    monkeypatch.setattr(common, "fingerprint", lambda: {**here, "cpu": "Another"})
    path = common.write("x", {"b": {"layers": 3}}, {}, tmp_path, alone=True)
    found = json.loads(path.read_text())
    assert found["machine"] == here and found["results"]["a"] == {"layers": 1}
    assert found["results"]["b"] == {"layers": 3, "machine": {**here, "cpu": "Another"}}
    common.write("x", {"a": {"layers": 5}}, {}, tmp_path, alone=True)
    found = json.loads(path.read_text())  # where no row of the first machine is left, the file is the other one's
    assert found["machine"]["cpu"] == "Another" and found["results"] == {"a": {"layers": 5}, "b": {"layers": 3}}
    monkeypatch.setattr(common, "fingerprint", lambda: {**here, "versions": {"torch": "0"}})
    common.write("x", {"c": {"layers": 4}}, {}, tmp_path, alone=True)
    assert json.loads(path.read_text())["results"] == {"c": {"layers": 4}}


def test_the_processor_is_named_where_the_system_tells(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nmodel name\t: A Fine CPU @ 3 GHz\n")
    assert cpu_model(info) == "A Fine CPU @ 3 GHz"
    assert cpu_model(tmp_path / "missing")


def test_a_command_is_measured_by_itself_and_its_failure_is_raised() -> None:
    small = build.run([sys.executable, "-c", "pass"])
    large = build.run([sys.executable, "-c", "x = bytearray(200 << 20)"])
    assert large["peak_mib"] > small["peak_mib"] + 150
    assert build.run([sys.executable, "-c", "pass"])["peak_mib"] < large["peak_mib"] - 150
    with pytest.raises(subprocess.CalledProcessError):
        build.run([sys.executable, "-c", "raise SystemExit(3)"])


def test_counts_separate_the_bodies_from_the_rest() -> None:
    body = FunctionBody("node", "segment_grouped_projection", Counts(5, 2, 1))
    parsed = ParsedNetwork(Counts(100, 5, 9), Counts(90, 1, 7), (body, body), {}, {}, ())
    found = graph.counts(parsed)
    assert found["total"]["transposes"] == 5 and found["outside"]["transposes"] == 1
    assert found["bodies"] == {
        "segment_grouped_projection": {"calls": 2, "most_transposes": 2, "most_reshapes": 1},
    }


def test_each_rule_that_fired_is_left_out_once() -> None:
    found = rules.variants({"a": 3, "b": 0, "hoist_reweighting": 2})
    assert found == {
        rules.ALL: ((), ()), "without a": (("a",), ()), "with hoist_reweighting": ((), ("hoist_reweighting",)),
        rules.BARE: ((*all_rules(), LAYOUT), ()),
    }  # fmt: skip


def test_ours_is_judged_against_the_plain_export_of_the_same_engine() -> None:
    times = {"eager": 4.0, "openvino ours": 1.0, "openvino plain": 2.0}
    taken = Timings({name: np.full(9, value) for name, value in times.items()}, dict.fromkeys(times, 1), 0)
    found = cpu.against_plain(taken, ["openvino"])
    assert found["openvino"]["openvino plain"]["value"] == 0.5
    assert found["openvino"]["eager"]["verdict"] == "faster" and cpu.COMPILED not in found["openvino"]


def test_what_computes_something_else_is_not_timed() -> None:
    rows = {"x": np.ones((2, 3), np.float32)}
    runners = {"network": lambda given: (torch.from_numpy(given["x"]),), "engine": lambda given: {"y": given["x"]}}
    common.check_alike(runners, rows)
    with pytest.raises(ValueError, match=r"wrong is off by 1\.0e-01 from network"):
        common.check_alike({**runners, "wrong": lambda given: {"y": 1.1 * given["x"]}}, rows)
    with pytest.raises(ValueError, match="has shape"):
        common.check_alike({**runners, "flat": lambda given: {"y": given["x"].ravel()}}, rows)


def test_augmentation_keeps_the_range_and_is_reproducible() -> None:
    images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    first, second = (augment(images, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second) and first.shape == images.shape
    assert first.min() >= -1 and first.max() <= 1 and not torch.equal(first, images)


def test_a_network_that_cannot_be_built_is_a_row_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 2, '{"error": {"message": "no"}}', "building\nerror: no\n")

    monkeypatch.setattr(zoo.subprocess, "run", refuses)
    row = zoo.measure("mixer_s32", [])
    assert row == {"family": "mixer", "built": False, "verified": False, "reason": "error: no"}


def test_an_installation_is_more_than_what_a_gpu_needs_of_it() -> None:
    found = install.measured()
    assert 1e8 < found["whole"] - found["cuda"] - found["torch_cuda"] < found["whole"]
    assert all(bytes_ >= 0 for bytes_ in found.values())


def searched(network: str, engine: str, verdict: str) -> dict[str, Any]:
    """What a search of the benchmark finds, of one change."""
    case = {"graph": network, "backend": engine, "versions": {}, "device": "a CPU", "precision": "fp32", "batch": "1"}
    trial = {"name": "pick_parts", "change": "left out", "verdict": verdict, "ratio": None, "pairs": 0, "why": ""}
    decision = {"network": network, "created": "2026-01-01", "judged_by": "time", "batch": 1, "seconds": 1.0}
    return {"case": case, "decision": decision | {"trials": [trial]}}


def test_a_search_of_one_engine_leaves_what_was_found_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts = {"openvino": "kept", "onnxruntime": "no better"}
    monkeypatch.setattr(
        search, "measure", lambda selection, backend, *_: searched("a", backend.name, verdicts[backend.name])
    )
    for engines, starts in (("openvino", "defaults,every rule on"), ("onnxruntime", "defaults")):
        arguments = ["search", "mixer_s32", "--backends", engines, "--starts", starts, "--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", arguments)
        search.main()
    found = json.loads((tmp_path / "search.json").read_text())["results"]["mixer_s32"]
    assert {name: set(row) for name, row in found.items()} == {
        "openvino": {"defaults", "every rule on"}, "onnxruntime": {"defaults"}
    }  # fmt: skip
    elsewhere = searched("a", "openvino", "kept")
    elsewhere["case"]["device"] = "another CPU"
    no_more = searched("a", "onnxruntime", "kept")
    assert search.shipped({"mixer_s32": found}, [elsewhere, no_more]) == [elsewhere, found["openvino"]["defaults"]]
