"""What a Triton server could not serve is refused in one line, before anything is written; and the command."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from mlpdeploy import pipeline
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.errors import ArtifactError, InputError
from mlpdeploy.export import triton
from mlpdeploy.export.triton import Wanted
from mlpdeploy.selection import Selection
from tests.conftest import Cli
from tests.export.made_up import PORTS, made_up


def test_what_triton_cannot_serve_is_one_line(artifact: Artifact, tmp_path: Path) -> None:
    own = onnx.load(artifact.model)
    own.graph.node[0].domain = own.opset_import.add(domain="ours", version=1).domain
    int4 = made_up(artifact, tmp_path / "int4", "openvino", precision="int4")
    half = [PORTS["outputs"][0] | {"dtype": "bfloat16"}]
    stripped, plugin = {"features": ["stripped"]}, {"plugin": {"used": True, "reason": None, "milliseconds": {}}}
    numbers = [PORTS["outputs"][0] | {"dtype": "complex64"}]
    cases: list[tuple[Artifact, Wanted, str]] = [
        (artifact, Wanted(kind="plan"), "is an engine of onnxruntime, and Triton loads TensorRT's alone"),
        (artifact, Wanted(kind="tflite"), "--kind tflite: choose one of: auto, plan, onnx, python"),
        (artifact, Wanted(instances=0), "--instances 0: give 1 or more"),
        (made_up(artifact, tmp_path / "half", "openvino", outputs=half), Wanted(), "build with --io fp32"),
        (made_up(artifact, tmp_path / "rtx", "tensorrt-rtx"), Wanted(kind="plan"), "an engine of tensorrt-rtx"),
        (made_up(artifact, tmp_path / "bare", **stripped), Wanted(), "Triton gives an engine no weights"),
        (int4, Wanted(), "beside INT4 weights .* --kind python"),
        (made_up(artifact, tmp_path / "complex", "openvino", outputs=numbers), Wanted(), "output is complex64, and"),
        (made_up(artifact, tmp_path / "plugin", **plugin), Wanted(), "build with --plugin off"),
        (
            made_up(artifact, tmp_path / "own", "tensorrt-rtx", model=own.SerializeToString()), Wanted(),
            "--kind onnx: ONNX Runtime refuses .*; give --kind python",
        ),
    ]  # fmt: skip
    for one, wanted, line in cases:
        with pytest.raises(InputError, match=line):
            triton.add(one, tmp_path / "models", wanted)
    for number, facts in enumerate(({"gpus": []}, {"gpus": ["sm89", "sm90"]}, {"versions": {}})):
        with pytest.raises(ArtifactError, match="does not say for which GPU it was built, and by which TensorRT"):
            triton.add(made_up(artifact, tmp_path / f"untold-{number}", **facts), tmp_path / "models")
    foreign = made_up(artifact, tmp_path / "foreign", own=False)
    with pytest.raises(ArtifactError, match="was not built here by you"):
        triton.add(foreign, tmp_path / "models")
    assert not (tmp_path / "models").exists()
    assert triton.add(foreign, tmp_path / "models", Wanted("a"), trusted=True)["kind"] == "plan"
    file = triton.add(
        made_up(artifact, tmp_path / "theirs", "tensorrt-rtx", own=False), tmp_path / "models", Wanted("b")
    )
    assert file["kind"] == "onnx"  # which is data


@pytest.mark.slow
def test_the_command(cli: Cli, artifact: Artifact, tmp_path: Path) -> None:
    printed = cli("export", artifact.folder, "--to", "triton", "--repository", "models", "--model-name", "a_b").stdout
    assert "models/a_b" in printed and "1/model.onnx" in printed
    assert "docker run" in printed and (tmp_path / "models" / "a_b" / "1" / "model.onnx").exists()
    assert "give --repository DIR, and no --folder" in cli("export", artifact.folder, "--to", "triton", code=2).stderr
    words = ["--to", "triton", "--repository", "models", "--folder", "here"]
    assert "give --repository DIR, and no --folder" in cli("export", artifact.folder, *words, code=2).stderr
    built = Selection(
        "tests.test_api:Net", "fp32", "onnxruntime", "1:2:4", input_shape=(3, 16, 16), out=tmp_path / "out"
    )
    pipeline.build(built)
    (folder,) = (tmp_path / "out").glob("*/fp32/onnxruntime")
    for option in (["--kind", "plan"], ["--instances", "2"], ["--repository", "models"]):
        assert "--to trtexec has none of Triton's options" in cli("export", folder, *option, code=2).stderr
    asked = ["--precision", "fp32", "--batch", "1:2:4", "--input-shape", "3x16x16", "--out", "out", "--json"]
    printed = cli("export", "tests.test_api:Net", "--to", "triton", "--repository", "models", *asked).stdout
    assert {key: json.loads(printed)[key] for key in ("model", "version", "kind")} == {
        "model": "tests.test_api-Net", "version": 1, "kind": "onnx",
    }  # fmt: skip
    assert (
        "built with"
        in cli(
            "export", "tests.test_api:Net", "--to", "triton", "--repository", "m", *asked, "--io", "fp16", code=None
        ).stderr
    )
