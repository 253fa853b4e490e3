"""An artifact is loaded and called where there is no PyTorch, and is refused for the same reasons as elsewhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mlpdeploy
from mlpdeploy import runtime
from mlpdeploy.artifact import trust
from mlpdeploy.errors import ArtifactError, InputError
from tests.conftest import REPOSITORY
from tests.test_api import Two

ALONE = """
import sys
sys.modules["torch"] = None  # importing it raises ImportError
import numpy
from mlpdeploy import runtime
with runtime.open("engine") as engine:
    numpy.savez("answers.npz", **engine(dict(numpy.load("rows.npz"))))
installed = [name for name, module in sys.modules.items() if "site-packages" in str(getattr(module, "__file__", ""))]
print(*{name.partition(".")[0] for name in installed})
"""


OPENVINO = {"openvino", "openvino_telemetry", "packaging", "_distutils_hack"}
"""What `import openvino` imports, and how this environment is made."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of two inputs and outputs, in floats and whole numbers, and rows with what it gives for them."""
    folder = tmp_path_factory.mktemp("runtime")
    example = (torch.randn(3, 4), torch.randint(0, 7, (3, 5)))
    with mlpdeploy.compile(Two(), example, precision="fp32", backend="openvino", batch="1:2:4") as engine:
        engine.save(folder / "engine")
        names = [port["name"] for port in engine.inputs]
        np.savez(folder / "rows.npz", **dict(zip(names, (one.numpy() for one in example), strict=True)))
        outputs = dict(zip((port["name"] for port in engine.manifest["outputs"]), engine(*example), strict=True))
        np.savez(folder / "expected.npz", **{name: one.numpy() for name, one in outputs.items()})
    return folder


@pytest.mark.slow
def test_numpy_and_the_engines_library_are_all_it_takes(saved: Path) -> None:
    environment = {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=saved, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"numpy", "openvino"} <= {*done.stdout.split()} <= {"numpy", "ml_dtypes", *OPENVINO}
    answers, expected = np.load(saved / "answers.npz"), np.load(saved / "expected.npz")
    assert {*answers} == {*expected}
    for name, array in expected.items():
        np.testing.assert_array_equal(answers[name], array)


def test_what_does_not_fit_is_one_line(saved: Path) -> None:
    rows = dict(np.load(saved / "rows.npz"))
    with runtime.open(saved / "engine") as engine:
        assert [port.name for port in engine.inputs] == [*rows] and len(engine.outputs) == 2
        with pytest.raises(InputError, match="the engine takes"):
            engine({name: array.astype(np.float64) for name, array in rows.items()})
        with pytest.raises(InputError, match="batch 1 to 4; it was given 12"):
            engine({name: np.concatenate([array] * 4) for name, array in rows.items()})
        engine.close()
        assert len(engine(rows)) == 2
    with pytest.raises(ArtifactError, match="there is no artifact at"):
        runtime.open(saved / "nothing")


def test_what_was_altered_or_is_somebody_elses_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = mlpdeploy.load(saved / "engine").save(tmp_path / "copy")
    manifest = json.loads((folder / "manifest.json").read_text())
    foreign = trust.sealed(manifest) | {"backend": "inductor", "seal": "another's"}
    foreign["facts"] |= {"backend": "inductor"}
    (folder / "manifest.json").write_text(json.dumps(foreign))
    rows = dict(np.load(saved / "rows.npz"))
    with pytest.raises(ArtifactError, match="was not built here by you, and its engine holds"):
        runtime.open(folder)(rows)
    with pytest.raises(ArtifactError, match="was built with torch"):
        runtime.open(folder, trusted=True)(rows)
    (folder / "engine.blob").write_bytes(b"other")
    with pytest.raises(ArtifactError, match="was altered after it was built"):
        runtime.open(folder)


def test_what_the_documentation_shows_runs(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlpdeploy.load(saved / "engine").save(tmp_path / "engines" / "mine")
    monkeypatch.chdir(tmp_path)
    page = (REPOSITORY / "docs" / "serving.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    assert [len(array) for array in names["outputs"].values()] == [3, 3]
