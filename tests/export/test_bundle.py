"""A bundle runs by itself: where nothing else of mlpdeploy, and nothing that builds engines, can be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mlpdeploy
from benchmarks.bundle import measured
from mlpdeploy.artifact import store
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.errors import ArtifactError, InputError
from mlpdeploy.export import bundle, packages
from tests.conftest import Cli
from tests.export.made_up import made_up

ALONE = """
import os, runpy, sys
for name in ("torch", "onnx", "timm", "typer", "rich", "filelock", "onnxscript", "PIL"):
    sys.modules[name] = None  # importing it raises ImportError
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])  # as of `python run.py`
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(*{module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "mlpdeploy"})
"""
FILES = ["Dockerfile", "README.md", "artifact/", "mlpdeploy/", "requirements.txt", "run.py"]


def run(folder: Path, *arguments: Path) -> subprocess.CompletedProcess[str]:
    """The bundle's `run.py` from elsewhere, with the environment's packages but those, and nothing on its path."""
    words = [sys.executable, "-c", ALONE, str(folder / "run.py"), *map(str, arguments)]
    return subprocess.run(words, cwd=folder.parent, env={}, capture_output=True, text=True)


@pytest.fixture(params=["openvino", "onnxruntime"])
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A bundle of each engine for a CPU, and a folder with rows and what they give."""
    network = torch.nn.Sequential(torch.nn.Flatten(1), torch.nn.Linear(12, 5), torch.nn.GELU())
    rows = torch.randn(3, 3, 2, 2)
    options: dict[str, Any] = {"precision": "fp32", "backend": request.param, "batch": "2:3:4"}
    with mlpdeploy.compile(network, rows, **options, disabled_rules=("fold_affine",)) as engine:
        artifact = store.open_artifact(engine.save(tmp_path / "artifact"))
        np.savez(tmp_path / "inputs.npz", **{engine.inputs[0]["name"]: rows.numpy()})
        np.savez(tmp_path / "expected.npz", **{engine.manifest["outputs"][0]["name"]: engine(rows).numpy()})
    found = bundle.write(artifact, tmp_path / "new" / "bundle")
    assert found["files"] == FILES and found["commands"][0].startswith("docker build -t ")
    return tmp_path / "new" / "bundle", tmp_path


@pytest.mark.slow
def test_it_opens_and_calls_the_engine_and_imports_no_file_from_elsewhere(exported: tuple[Path, Path]) -> None:
    folder, data = exported
    done = run(folder, data / "inputs.npz", data / "outputs.npz")
    assert done.returncode == 0, done.stderr
    imported = {Path(path).resolve() for path in done.stdout.split()}
    assert imported and all(path.is_relative_to(folder.resolve()) for path in imported)
    outputs, expected = np.load(data / "outputs.npz"), np.load(data / "expected.npz")
    assert {*outputs} == {*expected}
    for name, array in expected.items():
        np.testing.assert_array_equal(outputs[name], array)
    done = run(folder)  # on zeros, as many rows as the engine takes at least
    assert done.returncode == 0 and "(2, 5) float32" in done.stdout, done.stderr
    (data / "outputs.npz").unlink()
    (data / "garbage.npz").write_bytes(b"PK\x03\x04")
    for arguments in ([data / "garbage.npz", data / "outputs.npz"], [data / "none.npz", data / "outputs.npz"], [data]):
        done = run(folder, *arguments)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    with next((folder / "artifact").glob("engine.*")).open("ab") as engine:
        engine.write(b"more")
    done = run(folder)
    assert done.returncode == 1 and "was altered after it was built" in done.stderr and done.stderr.count("\n") == 1


def test_versions_are_those_of_the_manifest(artifact: Artifact, tmp_path: Path) -> None:
    bundle.write(artifact, tmp_path / "bundle")
    lines = (tmp_path / "bundle" / "requirements.txt").read_text().splitlines()
    found = dict(line.split("==") for line in lines)
    versions = artifact.manifest["versions"]
    assert {*found} == {"numpy", "ml_dtypes", "polygraphy", "onnxruntime"}
    assert {name: found[name] for name in ("numpy", "onnxruntime")} == {
        name: versions[name] for name in ("numpy", "onnxruntime")
    }
    minor = ".".join(versions["python"].split(".")[:2])
    assert (tmp_path / "bundle" / "Dockerfile").read_text().splitlines()[0] == f"FROM python:{minor}-slim"
    assert "Apache License" in (tmp_path / "bundle" / "mlpdeploy" / "LICENSE").read_text()
    assert not [*(tmp_path / "bundle").rglob(".*")] and not [*tmp_path.glob(".*")]


def test_what_cannot_be_bundled_is_one_line_and_nothing_is_written(artifact: Artifact, tmp_path: Path) -> None:
    facts = artifact.manifest["facts"] | {"versions": {"torch": "2.14.1"}}
    foreign = replace(artifact, manifest=artifact.manifest | {"facts": facts, "backend": "inductor"})
    with pytest.raises(ArtifactError, match="was not built here by you"):
        bundle.write(foreign, tmp_path / "bundle")
    with pytest.raises(InputError, match="is an engine of inductor, which PyTorch runs"):
        bundle.write(foreign, tmp_path / "bundle", trusted=True)
    plugin = {"plugin": {"used": True, "reason": None, "milliseconds": {}}}
    with pytest.raises(InputError, match="build with --plugin off"):
        bundle.write(made_up(artifact, tmp_path / "plugin", **plugin), tmp_path / "bundle")
    injected = {"versions": {"tensorrt": "10\nRUN true"}}
    with pytest.raises(ArtifactError, match="no version of it is known"):
        bundle.write(made_up(artifact, tmp_path / "injected", **injected), tmp_path / "bundle")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(InputError, match="is there already"):
        bundle.write(artifact, tmp_path / "full")
    assert not (tmp_path / "bundle").exists()


def test_one_for_a_gpu_carries_its_backend_and_asks_the_driver(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {"ml_dtypes": "0.5", "polygraphy": "0.53", "cuda-bindings": "13.0"}
    monkeypatch.setattr(packages, "installed_version", here.get)
    found = bundle.write(made_up(artifact, tmp_path / "plan"), tmp_path / "bundle")
    package = tmp_path / "bundle" / "mlpdeploy" / "engine" / "backends"
    assert {path.name for path in package.iterdir()} == {"__init__.py", "tensorrt"}
    assert "--gpus all" in found["commands"][1]
    assert "/nvidia/cu13/lib\nCOPY" in (tmp_path / "bundle" / "Dockerfile").read_text()
    lines = (tmp_path / "bundle" / "requirements.txt").read_text().splitlines()
    assert {"cuda-bindings==13.0", "nvidia-cuda-runtime", "tensorrt==10.13.3.9"} < {*lines}  # the second is not here
    done = run(tmp_path / "bundle")  # there is no such plan, and perhaps no GPU: no import is what fails
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert "mlpdeploy" in done.stdout and "No module" not in done.stderr


@pytest.mark.slow
def test_the_command_writes_one(artifact: Artifact, cli: Cli, tmp_path: Path) -> None:
    found = json.loads(cli("export", artifact.folder, "--to", "bundle", "--folder", "mine", "--json").stdout)
    assert found["files"] == FILES and (tmp_path / "mine" / "artifact" / "manifest.json").is_file()
    assert "give --to triton" in cli("export", artifact.folder, "--to", "bundle", "--kind", "plan", code=2).stderr


@pytest.mark.slow
@pytest.mark.online
def test_its_requirements_are_all_that_it_takes(artifact: Artifact, tmp_path: Path) -> None:
    found = measured(artifact, tmp_path)
    assert found["package"] < 1e6 < found["environment"] < 1e9
