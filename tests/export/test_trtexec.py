"""A folder for NVIDIA's tools: Polygraphy takes it by the line that it prints, and nothing that was there is lost."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest

from mlpdeploy import pipeline
from mlpdeploy.engine.backend import backends
from mlpdeploy.engine.signature import Signature
from mlpdeploy.errors import ArtifactError, InputError
from mlpdeploy.export import Exported, export, trtexec
from mlpdeploy.network.source import source_of
from mlpdeploy.selection import Selection
from tests.conftest import Cli
from tests.export.made_up import PORTS
from tests.warm import Warm

FILES = ["README.md", "input-input.bin", "inputs.json", "model.onnx", "output-output.bin", "outputs.json"]


@pytest.fixture(scope="module")
def selection(tmp_path_factory: pytest.TempPathFactory) -> Selection:
    """A small network that is built in FP16, for batch 1 to 4."""
    out = tmp_path_factory.mktemp("artifacts")
    found = Selection("tests.test_api:Net", "fp16", "onnxruntime", "1:2:4", input_shape=(3, 16, 16), out=out)
    pipeline.build(found)
    return found


@pytest.fixture
def exported(selection: Selection, tmp_path: Path) -> dict[str, Any]:
    return export(selection, "trtexec", tmp_path / "new" / "folder")


Polygraphy = Callable[[str, Path], subprocess.CompletedProcess[str]]


@pytest.fixture
def polygraphy(warm: Warm) -> Polygraphy:
    """A printed line, by this environment's Polygraphy, in a folder."""
    program = "import sys; from polygraphy.tools import main; sys.argv[0] = 'polygraphy'; main()"
    return lambda line, folder: warm.run(["-c", program, *shlex.split(line)[1:]], folder)


@pytest.mark.slow
def test_polygraphy_finds_what_was_expected_and_a_changed_file(
    exported: dict[str, Any], polygraphy: Polygraphy
) -> None:
    folder, line = Path(exported["folder"]), exported["commands"][0]
    assert exported["files"] == FILES and line.startswith("polygraphy run model.onnx --onnxrt ")
    done = polygraphy(line, folder)
    assert done.returncode == 0 and "PASSED" in done.stdout, done.stdout + done.stderr
    model = onnx.load(folder / "model.onnx")
    weight = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    weight.raw_data = bytes(len(weight.raw_data))
    onnx.save(model, folder / "model.onnx")
    assert "FAILED" in polygraphy(line, folder).stdout


def test_the_file_says_where_it_comes_from_and_the_rows_are_the_networks(
    exported: dict[str, Any], selection: Selection
) -> None:
    folder = Path(exported["folder"])
    model = onnx.load(folder / "model.onnx")
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert model.producer_name == "mlpdeploy" and model.producer_version
    assert said["mlpdeploy.network"] == "tests.test_api:Net" and said["mlpdeploy.precision"] == "fp16"
    assert said["mlpdeploy.batch"] == "1:2:4" and len(said["mlpdeploy.weights_sha256"]) == 64
    rows = np.fromfile(folder / "input-input.bin", np.float32).reshape(2, 3, 16, 16)
    given = np.fromfile(folder / "output-output.bin", np.float32).reshape(2, -1)
    import torch

    with torch.inference_mode():
        wanted = source_of(selection).network(torch.from_numpy(rows))
    np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-6)
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert all(line in page for line in exported["commands"])


def test_the_lines_for_tensorrt_have_the_profile_and_how_it_was_built(exported: dict[str, Any]) -> None:
    _, built, timed = exported["commands"]
    assert "--trt --strongly-typed --trt-min-shapes 'input:[1,3,16,16]'" in built and "--tf32" not in built
    assert timed.startswith("trtexec --onnx=model.onnx --stronglyTyped --minShapes=input:1x3x16x16 ")
    assert "--maxShapes=input:4x3x16x16" in timed and "--noTF32" in timed
    assert "--loadInputs=input:input-input.bin" in timed


def test_what_is_there_stays(selection: Selection, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for taken in ("full", "file", "link"):
        with pytest.raises(InputError, match="is there already: give a folder that is new or empty"):
            export(selection, "trtexec", tmp_path / taken)
    (tmp_path / "empty").mkdir()
    assert export(selection, "trtexec", tmp_path / "empty")["files"] == FILES
    with pytest.raises(InputError, match="no such format; choose one of: trtexec"):
        export(selection, "tflite", tmp_path / "new")
    for nowhere in (tmp_path / "file" / "below", tmp_path / ("long" * 99)):
        with pytest.raises(InputError, match="cannot be written"):
            export(selection, "trtexec", nowhere)
    assert (tmp_path / "file").read_text() == "mine"


def test_what_is_known_of_the_layers_leaves_with_it(selection: Selection, tmp_path: Path) -> None:
    (built,) = selection.out.glob("*/fp16/onnxruntime")
    profile = built / "profile.json"
    profile.write_text('[{"count": 3}]')
    try:
        found = export(selection, "trtexec", tmp_path / "here")
        assert found["files"] == sorted([*FILES, "engine/profile.json"])
        assert (tmp_path / "here" / "engine" / "profile.json").read_text() == '[{"count": 3}]'
        assert "`engine/profile.json` has the time of each of them" in (tmp_path / "here" / "README.md").read_text()
        profile.unlink()
        os.mkfifo(profile)
        with pytest.raises(ArtifactError, match=r"profile\.json cannot be read"):
            export(selection, "trtexec", tmp_path / "there")
    finally:
        profile.unlink()


@pytest.mark.slow
def test_an_engine_of_several_optimisation_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (reason := backends()["tensorrt-rtx"].available()) is not None:
        pytest.skip(reason)
    several = Selection(
        "tests.test_api:Net", "fp16", "tensorrt-rtx", "1,1:2:4", input_shape=(3, 16, 16), out=tmp_path / "out",
        features=("weight-streaming",),
    )  # fmt: skip
    artifact = pipeline.build(several)
    assert artifact.manifest["batch"] == {"min": 1, "opt": 2, "max": 4, "profiles": [[1, 1, 1], [1, 2, 4]]}
    assert pipeline.build(several).cached and not pipeline.build(replace(several, batch="1:2:4")).cached
    pipeline.build(several)
    found = pipeline.verify(several)
    assert found.passed and found.sizes == (1, 2, 4)
    assert pipeline.verify(several, quick=True).sizes == (1, 2)
    _, by_polygraphy, by_trtexec = export(several, "trtexec", tmp_path / "folder")["commands"]
    single, batches = ("input:1x3x16x16",) * 3, ("input:1x3x16x16", "input:2x3x16x16", "input:4x3x16x16")
    assert [word for word in by_trtexec.split() if "Shapes" in word or "rofile" in word] == [
        "--profile=0", *(f"--{end}Shapes={shape}" for end, shape in zip(("min", "opt", "max"), single, strict=True)),
        "--profile=1", *(f"--{end}Shapes={shape}" for end, shape in zip(("min", "opt", "max"), batches, strict=True)),
        "--useProfile=1",
    ]  # fmt: skip
    assert "--allowWeightStreaming" in by_trtexec and "--weight-streaming" in by_polygraphy
    assert by_polygraphy.count("--trt-min-shapes") == 2 and "--optimization-profile 1" in by_polygraphy


@pytest.mark.parametrize(("codes", "count"), [(onnx.TensorProto.FLOAT8E4M3FN, 3), (onnx.TensorProto.FLOAT4E2M1, 2)])
def test_no_line_asks_onnx_runtime_for_fp4(
    codes: int, count: int, selection: Selection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime 1.32 reads no E2M1: Polygraphy would end with its error."""
    written = trtexec.write

    def coded(found: Exported, folder: Path) -> list[str]:
        values = np.zeros(2).astype(onnx.helper.tensor_dtype_to_np_dtype(codes))
        found.model.graph.initializer.append(onnx.numpy_helper.from_array(values, "codes"))
        return written(found, folder)

    monkeypatch.setattr(trtexec, "write", coded)
    lines = export(selection, "trtexec", tmp_path / "folder")["commands"]
    page = (tmp_path / "folder" / "README.md").read_text(encoding="utf-8")
    assert len(lines) == count and all(line in page for line in lines)
    assert ("--onnxrt" in page) == (count == 3) != ("has no FP4" in page)


@pytest.mark.parametrize(
    ("flavour", "gpus", "words"),
    [
        ("tensorrt-rtx", (), []),
        ("tensorrt-rtx", ("sm86", "sm120"), ["--computeCapabilities=86,120"]),
        ("tensorrt-rtx", ("current",), ["--useGpu"]),
        ("tensorrt", ("sm89",), []),
    ],
)
def test_the_gpus_of_an_engine_are_named(flavour: str, gpus: tuple[str, ...], words: list[str]) -> None:
    """NVIDIA's manual has these options: without them tensorrt_rtx builds for Ampere and later, never for Turing."""
    signature = Signature.from_facts({"batch": [1, 2, 4], **PORTS})
    found = SimpleNamespace(
        selection=Selection("tests.test_api:Net", "fp16", flavour, "1:2:4", gpus=gpus),
        signature=signature,
        tolerances={"output": 0.1},
    )
    *_, line = trtexec._lines(cast(Exported, found)).values()
    assert [word for word in line.split() if "ompute" in word or "useGpu" in word] == words


def test_each_array_has_a_file_of_its_own() -> None:
    assert trtexec._raw("input", ["a/b", "a_b", "c"]) == {
        "a/b": "input-a_b.bin", "a_b": "input-a_b_.bin", "c": "input-c.bin",
    }  # fmt: skip


def test_what_fails_leaves_nothing(selection: Selection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "save", broken)
    with pytest.raises(InputError, match="cannot be written"):
        export(selection, "trtexec", tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command(cli: Cli, selection: Selection, tmp_path: Path) -> None:
    (built,) = selection.out.glob("*/fp16/onnxruntime")
    printed = cli("export", built, "--folder", "here", "--trust")
    assert "here" in printed.stdout and "polygraphy run model.onnx --onnxrt" in printed.stdout
    assert "[I]" not in printed.stderr and "[W]" not in printed.stderr
    document = json.loads(cli("export", built, "--to", "trtexec", "--folder", "there", "--json").stdout)
    assert document["files"] == FILES and (tmp_path / "there" / "model.onnx").exists()
    assert "no such format" in cli("export", built, "--to", "tflite", code=2).stderr
    assert "choose" in cli("export", "mint_wqk", "--backend", "nothing", code=2).stderr


def test_nothing_is_built_of_it(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no artifact"):
        export(Selection("mint_wqk", "fp32", "onnxruntime", out=tmp_path), "trtexec", tmp_path / "new")
    assert not (tmp_path / "new").exists()
