"""Two environments with OpenVINOs of their own, one fetched, held against each other (`python -m pytest -m online`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.terminal.test_cli import NETS

pytestmark = [pytest.mark.slow, pytest.mark.online]
OLDER = "2025.2.0"
FASTER_CLOCK = "import time\nreal = time.perf_counter_ns\ntime.perf_counter_ns = lambda: real() * 11 // 10\n"
"""What makes all that is timed 10 % slower."""


def environment(folder: Path, *packages: str, customize: str = "") -> Path:
    """The interpreter of a virtual environment that has these packages, and behind them all that this one has."""
    venv.create(folder, symlinks=os.name == "posix")
    python = folder / ("bin/python" if os.name == "posix" else "Scripts/python.exe")
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = Path(subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip())
    (own / "behind.pth").write_text(f"{REPOSITORY}\n{sysconfig.get_path('purelib')}\n")
    (own / "sitecustomize.py").write_text(customize)
    if packages:
        install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
        subprocess.run([*install, *packages], check=True)
    return python


def regress(python: Path, baseline: Path, folder: Path) -> dict[str, Any]:
    """What one interpreter finds against another; a side differs from itself by no 5 %, and from one slower by 10 %."""
    (folder / "nets.py").write_text(NETS)
    words = ["regress", "nets:Net", "--precision", "fp32", "--backend", "openvino", "--input-shape", "3,16,16"]
    words += [
        "--batch",
        "1",
        "--threads",
        "1",
        "--max-slowdown",
        "5%",
        "--max-build-growth",
        "900%",
        "--time",
        "600",
        "--json",
    ]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, "-m", "mlpdeploy", *words, "--time", "600", "--json", "--baseline-env", baseline]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def latency(found: dict[str, Any]) -> dict[str, Any]:
    gate: dict[str, Any] = next(one for one in found["gates"] if one["name"] == "latency")
    return gate


def test_an_environment_passes_against_its_like_and_a_slower_one_is_caught(tmp_path: Path) -> None:
    same = environment(tmp_path / "same")
    found = regress(environment(tmp_path / "here"), same, tmp_path)
    assert found["passed"] and found["baseline"]["differs"] == []
    assert {gate["verdict"] for gate in found["gates"]} == {"passed"}
    slower = regress(environment(tmp_path / "slower", customize=FASTER_CLOCK), same, tmp_path)
    gate = latency(slower)
    assert gate["verdict"] == slower["verdict"] == "regressed" and gate["change"] > 0.05


def test_an_older_openvino_is_named_first(tmp_path: Path) -> None:
    older = environment(tmp_path / "older", f"openvino=={OLDER}")
    found = regress(environment(tmp_path / "here"), older, tmp_path)
    ours = found["machine"]["versions"]["openvino"]
    assert found["baseline"]["differs"][0] == f"openvino: the baseline has {OLDER}, the candidate {ours}"
    assert found["baseline"]["engine"].startswith(f"openvino {OLDER}, mlpdeploy ")
    assert latency(found)["baseline"] > 0 and len(found["measurements"][0]["baseline_ms"]) >= 20
    gates = {gate["name"]: gate["verdict"] for gate in found["gates"]}
    assert {"engine-size", "build-time", "memory", "accuracy", "verification"} <= gates.keys()
    assert gates["accuracy"] == gates["verification"] == "passed"
