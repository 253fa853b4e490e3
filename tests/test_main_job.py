"""The main job, as the README has it, and the same job for every kind of network, precision and CPU engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlpdeploy import commands, pipeline
from mlpdeploy.engine.backend import backends
from mlpdeploy.evidence.proof.ladder import ITSELF
from mlpdeploy.network import finding
from mlpdeploy.selection import Selection
from mlpdeploy.terminal import cli as command_line
from mlpdeploy.zoo import recipe
from mlpdeploy.zoo.recipe import Budget
from tests.conftest import Cli
from tests.terminal.test_cli import NETS

FILES = {"model.onnx", "engine.plan", "graph.json", "layers.json", "manifest.json", "report.md"}
RANDOM = "random weights from seed 0; no checkpoint was given"


@pytest.fixture(autouse=True)
def rtx() -> None:
    reason = backends()["tensorrt-rtx"].available()
    if reason is not None:
        pytest.skip(reason)


def fits(printed: str) -> bool:
    return all(len(line) <= 80 for line in printed.splitlines())


@pytest.mark.slow
def test_the_main_job(cli: Cli, tmp_path: Path) -> None:
    # The smaller batch is the only departure from the README.
    name, less = "vip_s", ("--batch", "1")
    built = cli("build", name, "--precision", "fp16", "--backend", "tensorrt-rtx", *less)
    folder = tmp_path / "artifacts" / recipe.canonical(name) / "fp16" / "tensorrt-rtx"
    assert {path.name for path in folder.iterdir()} == FILES
    assert RANDOM in built.stdout and "transposes" in built.stdout and fits(built.stdout)
    for stage in ("load", "trace", "rewrite", "plan precision", "emit", "build"):
        assert f"\n  {stage} " in f"\n{built.stderr}"

    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["recipe"]["name"] == recipe.canonical(name) and manifest["precision"] == "fp16"
    assert manifest["weights"] == {"text": RANDOM, "random": True, "kind": "random", "seed": 0}
    parsed = manifest["facts"]["parsed"]
    assert set(parsed["dtypes"]["MATRIX_MULTIPLY"]) == set(parsed["dtypes"]["CONVOLUTION"]) == {"HALF"}
    assert parsed["outside"]["transposes"] <= 1
    assert manifest["files"].keys() == {"model.onnx", "engine.plan", "graph.json", "layers.json"}
    layers = json.loads((folder / "layers.json").read_text())
    assert len(layers["Layers"]) == manifest["facts"]["launches"]["total"] and layers["Bindings"] == ["input", "output"]
    fired = {rule["name"]: rule["fired"] for rule in manifest["rules"] if rule["fired"]}
    assert finding.find(name).rules.items() <= fired.items()
    assert RANDOM in (folder / "report.md").read_text() and "Not verified yet" in (folder / "report.md").read_text()

    again = cli("build", name, "--precision", "fp16", "--backend", "tensorrt-rtx", *less)
    assert "already built (cache hit)" in again.stdout
    assert not {"emit", "build"} & {line.split()[0] for line in again.stderr.splitlines() if line.strip()}
    assert json.loads((folder / "manifest.json").read_text()) == manifest

    verified = cli("verify", name, "--backend", "tensorrt-rtx", *less)
    assert {path.name for path in folder.iterdir()} == FILES | {"verification.json"}
    document = json.loads((folder / "verification.json").read_text())
    assert document["passed"] and document["files"] == {n: f["sha256"] for n, f in manifest["files"].items()}
    assert [stage["name"] for stage in document["stages"]][:5] == [*ITSELF, "rewritten graph, float64"]
    assert f"  artifacts/{recipe.canonical(name)}/fp16/tensorrt-rtx, built {manifest['created']}" in verified.stderr
    assert RANDOM in verified.stdout and document["verdict"] in verified.stdout and fits(verified.stdout)
    report = (folder / "report.md").read_text()
    assert document["verdict"] in report and "Not verified yet" not in report

    inspected = cli("inspect", name)
    assert document["verdict"] in inspected.stdout and fits(inspected.stdout)
    assert json.loads(cli("inspect", name, "--json").stdout)["verification"] == document


def run(*arguments: object, code: int = 0) -> None:
    with pytest.raises(SystemExit) as left:
        command_line.main([str(argument) for argument in arguments])
    assert left.value.code == code


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


SMALLEST = ("mint_wqk", "--batch", "1:2:3")


@pytest.mark.slow
def test_a_missed_budget_names_the_stage_and_the_tolerance_that_would_pass(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("build", *SMALLEST, "--backend", "tensorrt-rtx")
    budgets = dict(finding.find("mint_wqk").budgets) | {"fp16": Budget(1e-7, 0.99)}
    strict = replace(finding.find("mint_wqk"), budgets=budgets)
    monkeypatch.setattr(finding, "recipes", lambda: {"mint_wqk": strict})
    capsys.readouterr()

    run("verify", *SMALLEST, "--quick", "--backend", "tensorrt-rtx", "--json", code=1)
    document = json.loads(capsys.readouterr().out)
    assert not document["passed"] and document["first_failed"] == "typed graph, PyTorch"
    assert "the budget is 1.0e-07" in document["verdict"]
    tolerance = document["passing_tolerance"]
    assert 1e-7 < tolerance < 6e-3 and f"{tolerance:.1e} would have passed" in document["verdict"]
    folder = here / "artifacts" / "mint_wqk" / "fp16" / "tensorrt-rtx"
    assert json.loads((folder / "verification.json").read_text())["first_failed"] == "typed graph, PyTorch"

    run("verify", *SMALLEST, "--quick", "--backend", "tensorrt-rtx", code=1)
    printed = capsys.readouterr().out
    assert "failed" in printed and "would have passed" in printed and fits(printed)

    # And with exactly what each of its stages asks for it passes.
    asked = max(stage["passing_tolerance"] for stage in document["stages"] if stage["checks"])
    assert asked >= tolerance
    budgets["fp16"] = Budget(asked, 0.99)
    run("verify", *SMALLEST, "--quick", "--backend", "tensorrt-rtx")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorrt-rtx", "onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_precisions_and_engines(
    backend: str, precision: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "nets.py").write_text(NETS)
    small = ("nets:Net", "--input-shape", "3,16,16", "--batch", "1:2:3")
    selection = (*small, "--backend", backend, "--precision", precision)
    run("build", *selection)
    capsys.readouterr()
    run("verify", *selection, "--json")
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [stage["status"] for stage in stages[:-1]] == ["passed"] * 7
    assert [check["batch"] for check in stages[-2]["checks"]] == [1, 2, 3]
    if backend != "tensorrt-rtx":
        assert stages[-1]["status"] == "passed"
    elif isinstance(commands.doctor()["machine"]["gpus"], str):
        assert stages[-1]["status"] == "not executed" and "no NVIDIA GPU" in stages[-1]["reason"]


@pytest.mark.slow
def test_tf32_is_an_engine_of_fp32_that_may_use_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    selection = (*SMALLEST, "--precision", "tf32", "--backend", "tensorrt-rtx")
    run("build", *selection, "--json")
    manifest = json.loads(capsys.readouterr().out)["manifest"]
    assert set(manifest["facts"]["parsed"]["dtypes"]["MATRIX_MULTIPLY"]) == {"FLOAT"}
    assert manifest["facts"]["executed"] == "FLOAT with TF32"
    run("verify", *selection)


@pytest.mark.slow
def test_any_timm_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    selection = ("timm:resmlp_12_224.fb_in1k", "--image-size", "64", "--batch", "1:2:2", "--backend", "tensorrt-rtx")
    run("build", *selection, "--json")
    document = json.loads(capsys.readouterr().out)
    assert Path(document["folder"]).parts[1] == "timm-resmlp_12_224.fb_in1k"
    assert document["manifest"]["weights"]["text"] == RANDOM
    fired = {rule["name"]: rule["fired"] for rule in document["manifest"]["rules"]}
    assert (fired["project_tokens"], fired["fold_affine"]) == (12, 37)
    run("verify", *selection)


@pytest.mark.slow
def test_a_users_own_network(cli: Cli, tmp_path: Path) -> None:
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(NETS + "\ndef make_net(num_classes=5):\n    return Net()\n")
    name = "my_package.nets:make_net"
    message = cli("build", name, "--backend", "tensorrt-rtx", code=2).stderr
    assert f"nothing says what images {name} takes: pass --input-shape" in message
    selection = (name, "--input-shape", "3,16,16", "--backend", "tensorrt-rtx", "--batch", "1:2:4")
    built = json.loads(cli("build", *selection, "--json").stdout)["manifest"]
    assert built["weights"]["kind"] == "factory" and name in built["weights"]["text"]
    assert built["facts"]["parsed"]["outside"]["transposes"] <= 1
    printed = cli("verify", *selection).stdout
    assert "passed" in printed and "no checkpoint was given" in printed
    assert json.loads(cli("build", *selection, "--json").stdout)["cached"]


@pytest.mark.slow
def test_python_callers_get_the_same(here: Path) -> None:
    selection = Selection("mint_wqk", "fp16", "onnxruntime", "1")
    artifact = pipeline.build(selection)
    assert not artifact.cached and pipeline.build(selection).cached
    verification = pipeline.verify(selection)
    assert verification.passed and verification.verdict() == "passed"
    found: dict[str, Any] = commands.inspect("mint_wqk")
    assert Path(found["folder"]) == artifact.folder and found["verification"]["passed"]
