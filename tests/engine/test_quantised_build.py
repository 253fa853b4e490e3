"""INT8 as a user meets it: what it is calibrated on, what is refused, and what build, verify and sensitivity say."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlpdeploy import commands, pipeline
from mlpdeploy.calibration import Calibration
from mlpdeploy.errors import ArtifactError, InputError
from mlpdeploy.evidence.proof.samples import load_samples
from mlpdeploy.graph.quantisation.sites import Quantisation
from mlpdeploy.network.finding import find
from mlpdeploy.network.source import source_of
from mlpdeploy.selection import Selection
from mlpdeploy.selection.choice import NetworkChoice
from mlpdeploy.terminal.cli import main

NETWORK = """
import torch
from torch import nn
from timm.models.mlp_mixer import MlpMixer

def net():
    made = MlpMixer(img_size=32, patch_size=4, in_chans=3, num_classes=20, embed_dim=32, num_blocks=1,
                    mlp_ratio=(0.5, 2.0))
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1)
    return made
"""
NAME = "int8_example:net"
SHAPE = (3, 32, 32)


@pytest.fixture(autouse=True)
def _example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "int8_example.py").write_text(NETWORK, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("int8_example", None)


def images(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    for index in range(count):
        path = folder / f"{index % 20:02d}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    return folder


def selection(out: Path, calibration: str | None, precision: str = "int8", **options: Any) -> Selection:
    given = {"backend": "openvino", "batch": "1:2:3", "input_shape": SHAPE, **options}
    return Selection(NAME, precision, calibration=calibration, out=out, **given)


def samples(given: str, tmp_path: Path) -> Any:
    source = source_of(NetworkChoice(NAME, input_shape=SHAPE)).with_images(
        Selection(NAME, mean=(0.5,) * 3, std=(0.5,) * 3)
    )
    return load_samples(given, "--calibration", source.recipe, source.specs(), 0)


def test_a_broken_image_is_named_and_few_are_warned_of(tmp_path: Path) -> None:
    folder = images(tmp_path / "photos", 6)
    (folder / "00" / "broken.png").write_bytes(b"no image")
    found = samples(str(folder), tmp_path)
    assert found.count == 6 and found.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert [skipped.file.name for skipped in found.skipped] == ["broken.png"]
    assert "6 rows only" in found.warning()
    enough = samples(str(images(tmp_path / "many", 128)), tmp_path)
    assert enough.warning() is None and enough.count == 128


def test_digits_and_noise(tmp_path: Path) -> None:
    digits, again = samples("digits", tmp_path), samples("digits", tmp_path)
    assert digits.arrays["input"].shape == (256, *SHAPE) and digits.digest() == again.digest()
    assert digits.labels is None  # the network has 20 classes, not 10
    noise = samples("random", tmp_path)
    assert noise.random and "do not deploy" in noise.warning()


def npz(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return str(path)


def test_an_npz_file_by_any_name_with_labels(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((5, *SHAPE))
    found = samples(npz(tmp_path / "a.npz", anything=rows, labels=np.arange(5)), tmp_path)
    assert found.arrays["input"].dtype == np.float32 and found.labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("shape", {"input": np.zeros((4, 3, 8, 8))}, "this network takes arrays input"),
        ("empty", {"input": np.zeros((0, *SHAPE))}, "all with the same n above 0"),
        ("nan", {"input": np.full((2, *SHAPE), np.nan)}, "not all finite"),
        ("labels", {"input": np.zeros((2, *SHAPE)), "labels": np.zeros(3)}, "not 2 whole numbers"),
        ("text", {"input": np.full((2, *SHAPE), "a")}, "not real numbers"),
        ("complex", {"input": np.ones((2, *SHAPE), np.complex64)}, "not real numbers"),
        ("negative", {"input": np.zeros((2, *SHAPE)), "labels": np.array([0, -1])}, "one of its labels is -1"),
    ],
)
def test_an_npz_file_that_does_not_fit(tmp_path: Path, name: str, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        samples(npz(tmp_path / f"{name}.npz", **arrays), tmp_path)


def test_a_pickle_in_an_npz_file_is_never_loaded(tmp_path: Path) -> None:
    path = npz(tmp_path / "pickled.npz", input=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match=r"not a readable \.npz file"):
        samples(path, tmp_path)
    (tmp_path / "cut.npz").write_bytes(Path(path).read_bytes()[:40])
    with pytest.raises(InputError, match=r"not a readable \.npz file"):
        samples(str(tmp_path / "cut.npz"), tmp_path)


def promising(path: Path, shape: tuple[int, ...]) -> str:
    """An .npz file of a few bytes whose array says that it is of this shape."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("input.npy", header.getvalue())
    return str(path)


def test_an_npz_file_that_is_none_or_promises_too_much_is_one_line(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros((2, *SHAPE)))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    for path in (str(tmp_path / "one.npz"), promising(tmp_path / "much.npz", (10**12, *SHAPE))):
        with pytest.raises(InputError, match=r"not a readable \.npz file: .") as caught:
            samples(path, tmp_path)
        assert "\n" not in str(caught.value)


def test_what_is_no_data_at_all(tmp_path: Path) -> None:
    (tmp_path / "hollow").mkdir()
    (tmp_path / "ruined").mkdir()
    (tmp_path / "ruined" / "a.png").write_bytes(b"")
    for given, message in (
        ("hollow", "no image below"),
        ("ruined", "none of the 1 images"),
        ("notes.txt", "give a folder of images, an .npz file"),
    ):
        with pytest.raises(InputError, match=message):
            samples(str(tmp_path / given), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", NAME, "--precision", "int8"], "INT8 needs --calibration"),
        (["build", NAME, "--precision", "fp16", "--calibration", "digits"], "is for --precision int8, fp8 and nvfp4"),
        (["build", NAME, "--precision", "int8", "--calibration", "nowhere/"], "there is no such file"),
        (["build", NAME, "--precision", "int8", "--calibration", "random", "--calibrator", "median"], "calibrator"),
        (["build", NAME, "--precision", "int8", "--calibration", "random", "--max-drop", "-1"], "from 0 to 100"),
        (["build", NAME, "--precision", "int8", "--calibration", "random", "--max-drop", "1", "--min-sqnr", "9"],
         "exclude each other"),
        (["build", NAME, "--precision", "int8", "--calibration", "random", "--backend", "inductor"], "has no INT8"),
        (["sensitivity", NAME], "INT8 needs --calibration"),
    ],
)  # fmt: skip
def test_wrong_options_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--input-shape", "3,32,32"])
    error = capsys.readouterr().err
    assert left.value.code == 2 and message in error and "Traceback" not in error


def test_data_without_labels_are_refused_before_they_are_calibrated_on(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["build", NAME, "--input-shape", "3,32,32", "--precision", "int8", "--calibration", "random"]
    with pytest.raises(SystemExit) as left:
        main([*given, "--backend", "onnxruntime", "--max-drop", "1"])
    error = capsys.readouterr().err
    assert left.value.code == 2 and "--max-drop needs labels" in error and "calibrator" not in error


@pytest.mark.slow
def test_build_then_verify_without_the_data(tmp_path: Path) -> None:
    given = selection(tmp_path / "out", "random", min_sqnr=60.0)
    artifact = pipeline.build(given)
    int8 = artifact.manifest["quantised"]
    assert int8["random"] and "do not deploy" in int8["warning"]
    assert 0 < len(int8["kept"]) <= int8["of_sites"] and int8["sites"] == int8["of_sites"] - len(int8["kept"])
    assert int8["curve"][0]["kept"] == 0 and len(int8["ranked"]) == int8["of_sites"]
    assert {"openvino", "onnxruntime"} <= int8["worth"]["backends"].keys()
    assert set(int8["worth"]["backends"]["openvino"]["median_ms"]) == {"int8", "fp16", "fp32"}
    report = (artifact.folder / "report.md").read_text(encoding="utf-8")
    # What the report says to type is what the commands take.
    built, verified = report.split("```sh\n")[1].splitlines()[:2]
    assert "--calibration random" in built and "--min-sqnr 60.0" in built
    assert "--precision int8" in verified and "--calibration" not in verified and "--min-sqnr" not in verified
    assert "## INT8" in report and "curve.svg" in report and "do not deploy" in report
    assert (artifact.folder / "curve.svg").read_text(encoding="utf-8").startswith("<svg")
    verification = pipeline.verify(selection(tmp_path / "out", None))
    assert verification.passed, verification.verdict()
    assert verification.inputs == "calibration"
    assert [stage.status for stage in verification.stages] == ["passed"] * 8
    # It is timed without the data too, against what computes in the precision beside it.
    measured = commands.bench(selection(tmp_path / "out", None), against=("export",), sizes=[1], seconds=0.5).to_json()
    (export,) = (one for one in measured["measurements"][0]["contenders"] if one["kind"] == "export")
    assert "the plain export in fp32" in export["what"] and measured["roofline"] is None
    with pytest.raises(InputError, match="credit rules in fp16"):
        commands.bench(selection(tmp_path / "out", None), credit=True)
    with pytest.raises(InputError, match="or build the engine first"):
        commands.bench(selection(tmp_path / "elsewhere", None))
    # The gate builds its candidate, so it needs the data.
    held = commands.regress(given, str(artifact.folder), sizes=[1], seconds=0.5, undecided="pass")
    assert held.to_json()["selection"]["calibration"] == "random"
    with pytest.raises(InputError, match="INT8 needs --calibration"):
        commands.regress(selection(tmp_path / "out", None), str(artifact.folder), sizes=[1], seconds=0.5)
    # The same again is found, other data are not, and a lost calibration is one line.
    assert pipeline.build(given).cached
    (artifact.folder / "quantisation.json").unlink()
    with pytest.raises(ArtifactError, match="missing"):
        pipeline.verify(selection(tmp_path / "out", None))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_fp8_is_built_proved_and_told_as_such(backend: str, tmp_path: Path) -> None:
    artifact = pipeline.build(selection(tmp_path / "out", "random", "fp8", backend=backend, min_sqnr=45.0))
    coded = artifact.manifest["quantised"]
    assert coded["precision"] == "fp8" and 0 < len(coded["kept"]) < coded["of_sites"]
    assert all(one["reason"].startswith("in FP8 it alone leaves") for one in coded["kept"])
    # No engine that multiplies FP8 runs on a CPU, so nothing is timed.
    assert not coded["worth"]["backends"] and "FP8" in coded["worth"]["not_measured"][backend]
    report = (artifact.folder / "report.md").read_text(encoding="utf-8")
    assert "## FP8" in report and "kept from FP8" in report and "INT8" not in report
    assert "no engine that multiplies FP8 runs here" in report
    curve = (artifact.folder / "curve.svg").read_text(encoding="utf-8")
    assert "FP8" in curve and "INT8" not in curve
    verification = pipeline.verify(selection(tmp_path / "out", None, "fp8", backend=backend))
    assert [stage.status for stage in verification.stages] == ["passed"] * 8, verification.verdict()


@pytest.mark.slow
def test_each_precision_has_a_calibration_and_a_sensitivity_of_its_own(tmp_path: Path) -> None:
    found = {p: commands.sensitivity(selection(tmp_path / "out", "random", p))[0] for p in ("int8", "fp8")}
    assert len(list((tmp_path / "out").rglob("calibration/*.json"))) == 2
    assert found["int8"]["sites"] != found["fp8"]["sites"] and found["fp8"]["precision"] == "fp8"
    with pytest.raises(InputError, match="sensitivity is that of int8 or fp8"):
        commands.sensitivity(Selection(NAME, "fp16", "openvino", input_shape=SHAPE, out=tmp_path / "out"))


@pytest.mark.slow
def test_a_calibration_is_found_again_and_another_calibrator_is_another(tmp_path: Path) -> None:
    given = selection(tmp_path / "out", "random")
    first, _ = commands.sensitivity(given)
    again, picture = commands.sensitivity(given)
    assert first == again
    assert len(list((tmp_path / "out").rglob("calibration/*.json"))) == 1
    assert [row["sqnr_db"] for row in first["sites"]] == sorted(row["sqnr_db"] for row in first["sites"])
    assert "mlp_tokens" in picture.read_text(encoding="utf-8")
    commands.sensitivity(selection(tmp_path / "out", "random", calibrator="max"))
    assert len(list((tmp_path / "out").rglob("calibration/*.json"))) == 2


def test_a_network_without_a_product_for_int8_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "narrow_example.py").write_text("from torch import nn\n\ndef net():\n    return nn.Linear(8, 8)\n")
    given = Selection("narrow_example:net", "int8", "onnxruntime", "1:2:3", input_shape=(8,), calibration="random",
                      out=tmp_path / "out")  # fmt: skip
    with pytest.raises(InputError, match="no product of this network can take INT8"):
        commands.sensitivity(given)
    with pytest.raises(InputError, match="no product of this network can take INT8"):
        pipeline.build(replace(given, min_sqnr=30.0))


def test_a_curve_without_noise_has_no_picture(tmp_path: Path) -> None:
    exact = {"kept": 0, "quantised_macs": 1.0, "sqnr_db": None, "top1": None}
    Calibration(Quantisation("int8", "max", {}, {}, {}, "", 1), curve=(exact,)).save(tmp_path, "net")
    assert {path.name for path in tmp_path.glob("*.[jns]*")} >= {"quantisation.json", "rows.npz"}
    assert not (tmp_path / "curve.svg").exists()


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_recipes_have_a_budget_for_8_bits(precision: str) -> None:
    assert find("vip_s14").budgets[precision].max_relative_error <= 0.1
    assert precision in json.loads(json.dumps(find("mixer_b16").precisions))
