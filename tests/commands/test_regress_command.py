"""`bench`, `regress` and `history` as a user meets them: what is refused, in one line, and one whole story."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from mlpdeploy.engine import nvidia
from mlpdeploy.evidence.documents.bench import read
from mlpdeploy.evidence.latency import machine
from tests.conftest import REPOSITORY, Cli
from tests.terminal.test_cli import NETS, in_process

EXAMPLE = REPOSITORY / "tests" / "data" / "bench.json"
NO_GPU = pytest.mark.skipif(not isinstance(nvidia.probe(), str), reason="this machine has an NVIDIA GPU")


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: str | Path) -> str:
    """The one line that a command ends with."""
    assert in_process(*map(str, arguments)) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0].removeprefix("error: ")


def regress(*arguments: str | Path) -> tuple[str | Path, ...]:
    return ("regress", "mixer_s32", "--precision", "fp32", "--backend", "onnxruntime", *arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-slowdown", "fast"], "--max-slowdown 'fast': is no percentage; give one such as 3%"),
        (["--max-accuracy-loss", "0.5"], "--max-accuracy-loss '0.5': is no percentage; give one such as 3%"),
        (["--undecided", "maybe"], "--undecided maybe: give pass or fail"),
        (["--accept", "speed"], "--accept speed: is no gate; choose from latency, engine-size, "),
        (["--batch", "1,0"], "batch '1,0': give the sizes to time, such as 1,8,64"),
        (["--threads", "4096"], "--threads 4096: this process may use 1 to "),
        ([], "--baseline missing.json: there is no such file or folder; give a saved result, an artifact's folder"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_built(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(capsys, 2, *regress("--baseline", "missing.json", *arguments)).startswith(said)
    assert not list(tmp_path.rglob("*"))


def saved(path: Path, **changes: Any) -> Path:
    document = read(EXAMPLE) | {"machine": machine.fingerprint()} | changes
    path.write_text(json.dumps(document))
    return path


def test_saved_results_of_another_kind_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = saved(tmp_path / "a.json", network={**read(EXAMPLE)["network"], "name": "vip_s7"})
    said = refused(capsys, 2, *regress("--baseline", other))
    assert "is of vip_s7, not of mixer_s32" in said
    assert "has schema 0, this mlpdeploy reads 1" in refused(
        capsys, 2, *regress("--baseline", saved(tmp_path / "b.json", schema=0))
    )
    (tmp_path / "c.json").write_text(EXAMPLE.read_text()[:5000])
    assert "is no JSON document" in refused(capsys, 2, *regress("--baseline", tmp_path / "c.json"))
    assert "there is no artifact at" in refused(capsys, 2, *regress("--baseline", tmp_path))


def test_a_saved_result_of_another_machine_says_so_and_exits_3(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = saved(tmp_path / "a.json", machine={**machine.fingerprint(), "cpu": "Another CPU", "cores": 96})
    said = refused(capsys, 3, *regress("--baseline", other))
    assert "measured on another machine or with other versions (cpu " in said and "(was Another CPU); cores" in said
    assert said.endswith("give an artifact or git:REVISION, which is measured here")


def test_a_revision_that_is_not_there_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "not a git repository" in refused(capsys, 2, *regress("--baseline", "git:main"))
    subprocess.run(["git", "init", "-q"], check=True)
    assert refused(capsys, 2, *regress("--baseline", "git:nowhere")).startswith("--baseline git:nowhere: ")
    assert refused(capsys, 2, *regress("--baseline", "git:--help")).startswith("--baseline git:--help: ")


@NO_GPU
def test_an_engine_that_cannot_run_here_is_not_timed_and_nothing_is_built(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, 3, "bench", "mixer_s32", "--backend", "tensorrt-rtx")
    assert said.startswith("a tensorrt-rtx engine cannot be timed on this machine: no ")
    assert "what can be measured here: openvino, onnxruntime" in said and not list(tmp_path.rglob("*"))


def test_a_rival_that_is_no_network_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(
        capsys, 2, "bench", "mixer_s32", "--precision", "fp32", "--backend", "onnxruntime", "--against", "vip_x"
    )
    assert said.startswith("--against vip_x: is none of eager, compile, export, max-autotune, and no network: ")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a small network, whose branch is main."""

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / ".gitignore").write_text("artifacts/\n*.npz\n")
    git("init", "-q", "-b", "main")
    git("add", ".")
    git("commit", "-qm", "one block")
    return tmp_path


@pytest.mark.slow
def test_an_int8_engine_is_held_against_a_revision(cli: Cli, repository: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((160, 3, 16, 16), np.float32)
    np.savez(repository / "rows.npz", rows)
    engine = ("--precision", "int8", "--backend", "onnxruntime", "--input-shape", "3,16,16", "--plugin", "off")
    int8 = ("--calibration", "rows.npz", "--calibrator", "max", "--min-sqnr", "20")
    run = ("--baseline", "git:main", "--batch", "1", "--threads", "1", "--undecided", "pass", "--time", "1", "--json")
    found = json.loads(cli("regress", "nets:Net", *engine, *int8, *run, code=None).stdout)
    gates = {gate["name"]: gate for gate in found["gates"]}
    assert found["baseline"]["kind"] == "git" and found["baseline"]["differs"] == []
    assert found["selection"]["calibrator"] == "max" and found["selection"]["plugin"] == "off"
    assert gates["accuracy"]["verdict"] == gates["memory"]["verdict"] == "passed"
    assert len(found["measurements"][0]["medians_ms"]) >= 20


@pytest.mark.slow
@pytest.mark.usefixtures("repository")
def test_a_network_of_ones_own_is_held_against_its_own_revision(cli: Cli, tmp_path: Path) -> None:
    deeper = NETS.replace("self.head(self.block(", "self.head(self.block(self.block(").replace(
        ".mean(1))", ").mean(1))"
    )
    (tmp_path / "nets.py").write_text(deeper)
    same = (
        "--precision",
        "fp32",
        "--backend",
        "onnxruntime",
        "--input-shape",
        "3,16,16",
        "--batch",
        "1",
        "--threads",
        "1",
    )
    command = ("regress", "nets:Net", *same, "--baseline", "git:main", "--undecided", "pass", "--time", "2", "--json")

    found = json.loads(
        cli(*command, "--junit", "junit.xml", "--markdown", "summary.md", "--save", "run.json", code=1).stdout
    )
    verdicts = {gate["name"]: gate["verdict"] for gate in found["gates"]}
    assert verdicts["layers"] == verdicts["memory"] == "regressed" or verdicts["layers"] == "regressed"
    assert verdicts["accuracy"] == "passed" and found["baseline"]["kind"] == "git"
    assert {"baseline_ms", "medians_ms"} <= set(found["measurements"][0])
    assert ElementTree.parse(tmp_path / "junit.xml").getroot()[0].get("failures") != "0"
    assert "### ❌ nets:Net fp32 with onnxruntime: regressed" in (tmp_path / "summary.md").read_text()
    assert json.loads((tmp_path / "run.json").read_text()) == found
    worktrees = subprocess.run(["git", "worktree", "list"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(worktrees.stdout.splitlines()) == 1

    trend = cli("history", "nets:Net", "--svg", "trend.svg").stdout
    assert "batch 1, 1 thread" in trend and "regressed" in trend
    assert ElementTree.parse(tmp_path / "trend.svg").getroot().tag.endswith("svg")
