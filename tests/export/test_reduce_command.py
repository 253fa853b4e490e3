"""`verify --reduce`: what fails leaves as a folder that shows it, and nothing is written where nothing can be."""

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
from torch import Tensor, nn

from mlpdeploy import pipeline
from mlpdeploy.engine.backends import onnxruntime
from mlpdeploy.engine.onnx import emit as emission
from mlpdeploy.engine.onnx.emit import Emitted
from mlpdeploy.graph.precision import plan as planning
from mlpdeploy.selection import Selection
from mlpdeploy.terminal.cli import main
from tests.export.test_trtexec import Polygraphy, polygraphy

__all__ = ["polygraphy"]

NAME = "tests.test_api:Net"


class Loud(nn.Module):
    """What FP16 does not hold, between two products that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head((self.first(x) * 1e6).relu() * 1e-6)
        return logits


def broken(emitted: Emitted) -> Emitted:
    """The file with another weight in its last product."""
    model = onnx.ModelProto()
    model.CopyFrom(emitted.model)
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    sized = [tensor for name, tensor in held.items() if len(tensor.dims) == 2 and "head" in name]
    for tensor in sized:
        array = numpy_helper.to_array(tensor)
        changed = np.roll(array, 1, axis=0) if array.dtype.kind in "iV" else -array
        tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    return replace(emitted, model=model)


Typed = Callable[[list[str]], tuple[int, str, str]]


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Typed:
    """A command line in this process, where what is patched is patched: exit code, stdout and stderr."""

    def run(line: list[str]) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(line)
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out, said.err

    return run


def words(out: Path, folder: Path, *more: str) -> list[str]:
    given = ["--backend", "onnxruntime", "--batch", "1:2:4", "--input-shape", "3,16,16", "--out", str(out)]
    return ["verify", NAME, *given, "--reduce", str(folder), *more]


@pytest.mark.slow
def test_a_plan_that_loses_accuracy_is_held_against_float32(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_reasons", lambda *_: {})
    name, given = "tests.export.test_reduce_command:Loud", ["--input-shape", "16", "--out", str(tmp_path / "out")]
    pipeline.build(Selection(name, "fp16", "onnxruntime", "1:2:4", input_shape=(16,), out=tmp_path / "out"))
    code, out, _ = typed(["verify", name, "--backend", "onnxruntime", "--batch", "1:2:4", *given,
                          "--reduce", str(tmp_path / "part"), "--json"])  # fmt: skip
    found = json.loads(out)
    assert code == 1 and found["first_failed"].startswith("typed graph")
    part = found["reduced"]
    assert "first/Gemm" in part["nodes"] and not any("head" in name for name in part["nodes"]), part
    json.loads(json.dumps(part, allow_nan=False))


def build(out: Path, **options: Any) -> None:
    pipeline.build(Selection(NAME, **{"precision": "fp16", **options}, backend="onnxruntime", batch="1:2:4",
                             input_shape=(3, 16, 16), out=out))  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_wrong_file_leaves_as_its_smallest_wrong_part(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, polygraphy: Polygraphy, precision: str
) -> None:
    right = emission.emit
    monkeypatch.setattr(emission, "emit", lambda graph: broken(right(graph)))
    build(tmp_path / "out", precision=precision, calibration="random" if precision == "int8" else None)
    folder = tmp_path / "new" / "part"
    code, out, err = typed(words(tmp_path / "out", folder, "--precision", precision, "--json"))
    assert code == 1, err
    found = json.loads(out)
    assert found["first_failed"].startswith("emitted ONNX") and not found["passed"]
    part = found["reduced"]
    assert 0 < len(part["nodes"]) <= 4 and any("head" in name for name in part["nodes"]), part
    assert max(part["errors"].values()) > 6e-3 and part["folder"] == str(folder)
    assert sorted(path.name for path in folder.iterdir()) == part["files"]
    for name in ("inputs.json", "outputs.json") if precision == "fp16" else ():
        assert "| Stats: mean=" in polygraphy(f"polygraphy inspect data {name}", folder).stdout
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert "a part of it: " in page and part["nodes"][0] in page and all(line in page for line in part["commands"])
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert len(model.graph.node) <= 8
    said = polygraphy(part["commands"][0], folder)
    assert "FAILED" in said.stdout and "Pass Rate: 0.00%" in said.stdout, said.stderr


@pytest.mark.slow
def test_a_wrong_engine_is_built_again_of_parts(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, polygraphy: Polygraphy
) -> None:
    backend = onnxruntime.BACKEND
    right = backend._build
    monkeypatch.setattr(backend, "_build", lambda emitted, *more: right(broken(emitted), *more))
    build(tmp_path / "out")
    folder = tmp_path / "part"
    code, out, err = typed(words(tmp_path / "out", folder, "--precision", "fp16"))
    assert code == 1 and "engine" in out and "Traceback" not in err
    assert "the smallest part that fails: head" in out.replace("\n", " ") and str(folder) in out
    # The file is right, so ONNX Runtime agrees with PyTorch on it.
    line = next(line.strip() for line in out.splitlines() if "--onnxrt" in line)
    assert "PASSED" in polygraphy(line, folder).stdout


@pytest.mark.slow
def test_an_engine_that_takes_bytes_and_gives_classes_has_a_part_as_well(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = emission.emit
    monkeypatch.setattr(emission, "emit", lambda graph: broken(right(graph)))
    half = (0.5, 0.5, 0.5)
    build(tmp_path / "out", pixels="hwc", mean=half, std=half, softmax=True, topk=3)
    served = ["--pixels", "hwc", "--mean", ".5,.5,.5", "--std", ".5,.5,.5", "--softmax", "--topk", "3"]
    code, out, err = typed(words(tmp_path / "out", tmp_path / "part", "--precision", "fp16", *served, "--json"))
    assert code == 1, err
    found = json.loads(out)
    assert found["first_failed"].startswith("emitted ONNX") and "reduced" in found, err
    assert any("head" in name for name in found["reduced"]["nodes"])


@pytest.mark.slow
def test_what_passes_or_lies_there_leaves_nothing(typed: Typed, tmp_path: Path) -> None:
    build(tmp_path / "out")
    code, out, _ = typed(words(tmp_path / "out", tmp_path / "part", "--precision", "fp16"))
    assert code == 0 and "no part is written: nothing failed" in out and not (tmp_path / "part").exists()
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("mine")
    code, out, err = typed(words(tmp_path / "out", taken, "--precision", "fp16"))
    assert code == 2 and "is there already" in err and not out
    assert [path.name for path in taken.iterdir()] == ["mine"]
