"""How images are prepared: known of a recipe's network, asked for of one's own, remembered, and said."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mlpdeploy
from mlpdeploy.errors import InputError
from mlpdeploy.network.source import source_of
from mlpdeploy.selection import Selection
from mlpdeploy.selection.choice import NetworkChoice
from mlpdeploy.terminal import cli as command_line

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels=3, classes=10):
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(channels, 32, 4, 4), nn.Linear(4, 4), nn.Linear(32, classes)
    def forward(self, x):
        x = self.stem(x).flatten(2)
        return self.head(nn.functional.gelu(x + self.mix(x)).mean(2))

def grey(): return Net(1)
def twenty(): return Net(3, 20)
def known():
    net = Net()
    net.pretrained_cfg = {
        "input_size": (3, 8, 8), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5), "crop_pct": 1.0,
        "crop_mode": "squash",
    }
    return net
def silent():
    net = Net()
    nn.init.zeros_(net.head.weight)
    return net
"""
OWN = (
    "image_nets:Net",
    "--input-shape",
    "3,8,8",
    "--precision",
    "fp32",
    "--backend",
    "onnxruntime",
    "--batch",
    "1:2:4",
)
HALF = ("--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25")
Run = Callable[..., tuple[Any, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command with --json; its document, and what it said beside."""
    (tmp_path / "image_nets.py").write_text(NETS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("image_nets", None)

    def called(*arguments: object, code: int = 0) -> tuple[Any, str]:
        with pytest.raises(SystemExit) as left:
            command_line.main([*map(str, arguments), "--json"])
        printed = capsys.readouterr()
        assert left.value.code == code, printed
        document = json.loads(printed.out)
        return document if code == 0 else document["error"]["message"], printed.err

    return called


def photos(folder: Path, names: tuple[str, ...], each: int = 2) -> Path:
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir(parents=True)
        for index in range(each):
            pixels = rng.integers(0, 256, (12, 15, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


@pytest.mark.slow
def test_images_of_ones_own_network_are_not_prepared_in_silence(run: Run, tmp_path: Path) -> None:
    """ImageNet's mean, std and crop were taken, and nothing said so."""
    folder = photos(tmp_path / "photos", ("0", "1", "2"))
    run("build", *OWN)
    said, _ = run("verify", *OWN, "--data", folder, code=2)
    assert "how the images of image_nets:Net are prepared is not known" in said and "--mean M,... --std S,..." in said
    said, _ = run("build", *OWN[:3], "--precision", "int8", "--backend", "onnxruntime", "--calibration", folder, code=2)
    assert "is not known" in said
    said, _ = run("sensitivity", *OWN[:3], "--calibration", folder, code=2)
    assert "is not known" in said
    document, told = run("verify", *OWN, "--data", folder, *HALF, "--crop", "1", "--resize", "nearest")
    prepared = "images resized nearest, centre crop 1, mean 0.5, 0.5, 0.5, std 0.25, 0.25, 0.25"
    assert document["passed"] and document["data"] == [f"6 images below {folder}, labelled", prepared]
    assert prepared in told


def test_what_the_options_say_is_done_to_the_images(run: Run, tmp_path: Path) -> None:
    from mlpdeploy.evidence.proof.images import Preprocess
    from mlpdeploy.evidence.proof.samples import load_samples

    run("build", *OWN)
    image = Image.fromarray(np.full((8, 8, 3), (255, 0, 51), np.uint8))
    (tmp_path / "one").mkdir()
    image.save(tmp_path / "one" / "a.png")
    asked = Selection("image_nets:Net", mean=(0.5, 0.5, 0.2), std=(0.5, 0.25, 1.0), crop=1.0, resize="box")
    source = source_of(NetworkChoice("image_nets:Net", input_shape=(3, 8, 8))).with_images(asked)
    found = load_samples(str(tmp_path / "one"), "--data", source.recipe, source.specs(), 0)
    assert np.allclose(found.arrays["input"], np.reshape([1.0, -2.0, 0.0], (1, 3, 1, 1)), atol=1e-6)
    assert found.prepared == str(Preprocess((8, 8), 1.0, "box", (0.5, 0.5, 0.2), (0.5, 0.25, 1.0)))
    (spec,) = source.specs()
    assert spec.black == (-1.0, -2.0, -0.2) and spec.white == (1.0, 2.0, 0.8)


@pytest.mark.slow
def test_a_network_that_brings_timms_facts_needs_no_options(run: Run, tmp_path: Path) -> None:
    own = ("image_nets:known", *OWN[3:])
    folder = photos(tmp_path / "photos", ("a",))
    run("build", *own)
    document, _ = run("verify", *own, "--data", folder)
    shown = "images resized bicubic, squashed, centre crop 1, mean 0.1, 0.2, 0.3, std 0.5, 0.5, 0.5"
    assert document["data"][1] == shown
    document, _ = run("verify", *own, "--data", folder, "--crop", "0.5")
    assert "centre crop 0.5, mean 0.1" in document["data"][1]


@pytest.mark.slow
def test_what_an_engine_was_calibrated_with_is_remembered_and_decides_it(run: Run, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", tuple("0123456789"))
    int8 = (*OWN[:3], "--precision", "int8", "--backend", "onnxruntime", "--batch", "1:2:4")
    build = ("build", *int8, "--calibration", folder, "--calibrator", "max", *HALF)
    first, told = run(*build, "--limit", "10")
    assert f"10 images below {folder}, of 20, labelled" in told and "mean 0.5, 0.5, 0.5, std 0.25" in told
    assert "10 of 20 rows are used, spread evenly: --limit N takes more" in told
    assert first["manifest"]["quantised"]["rows"] == 10
    assert first["manifest"]["selection"]["mean"] == [0.5, 0.5, 0.5] and first["manifest"]["selection"]["limit"] == 10
    assert run(*build, "--limit", "10")[0]["cached"]
    document, told = run("verify", *int8, "--data", folder)
    assert "mean 0.5, 0.5, 0.5, std 0.25, 0.25, 0.25" in document["data"][1] and document["data"][0].startswith("20 ")
    said, _ = run("verify", *int8, "--data", folder, "--mean", "0,0,0", "--std", "1,1,1", code=2)
    assert "mean [0.0, 0.0, 0.0] (built with [0.5, 0.5, 0.5])" in said
    report = (Path(first["folder"]) / "report.md").read_text(encoding="utf-8")
    assert "--limit 10" in report and "--mean 0.5,0.5,0.5 --std 0.25,0.25,0.25" in report
    for other in (("--limit", "12"), ("--limit", "10", "--crop", "0.5"), ("--limit", "10", "--resize", "box")):
        assert not run(*build, *other)[0]["cached"]
    ranked, told = run("sensitivity", *OWN[:3], "--calibration", folder, "--calibrator", "max", *HALF, "--limit", "5")
    assert ranked["calibration"]["rows"] == 5 and "5 of 20 rows are used" in told


@pytest.mark.slow
def test_scikit_learns_digits_have_labels_for_any_network_of_ten_classes(run: Run) -> None:
    grey = ("image_nets:grey", "--input-shape", "1,8,8", *OWN[3:])
    run("build", *grey)
    document, _ = run("verify", *grey, "--data", "digits", "--limit", "50")
    assert document["data"] == [
        "50 of scikit-learn's digits, labelled",
        "images resized bilinear, centre crop 1, mean 0.5, std 0.5",
        "50 of 1797 rows are used, spread evenly: --limit N takes more",
    ]
    assert document["stages"][-1]["images"]["accuracy"] is not None
    twenty = ("image_nets:twenty", *OWN[1:])
    run("build", *twenty)
    document, _ = run("verify", *twenty, "--data", "digits")
    why = "the network has 20 classes, there are 10 digits"
    assert document["data"][0] == f"256 of scikit-learn's digits, without labels: {why}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("cat", "dog"), "without labels: 2 sub-folders are not the 10 classes of the network"),
        (("3", "10"), "without labels: sub-folder 10 is none of 10 classes, numbered from 0"),
        (tuple("abcdefghij"), "labelled"),
        (("", "1"), "without labels: 0.png lies in no sub-folder named by its class"),
    ],
)
def test_where_sub_folders_are_no_labels_the_reason_is_said(
    run: Run, tmp_path: Path, names: tuple[str, ...], told: str
) -> None:
    run("build", *OWN)
    folder = tmp_path / "photos"
    photos(folder, names) if all(names) else photos(photos(tmp_path, ("photos",)), names[1:])
    document, _ = run("verify", *OWN, "--data", folder, *HALF)
    assert document["data"][0].endswith(told)


def test_rows_without_labels_say_so(run: Run, tmp_path: Path) -> None:
    run("build", *OWN)
    rows = np.random.default_rng(0).standard_normal((7, 3, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "rows.npz", input=rows)
    document, _ = run("verify", *OWN, "--data", "rows.npz", "--limit", "3")
    assert document["data"] == [
        "3 rows of rows.npz, without labels: there is no array 'labels' in it",
        "3 of 7 rows are used, spread evenly: --limit N takes more",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mean", "0.5,0.5,0.5"), "--mean and --std belong together"),
        (("--mean", "0.5,x", "--std", "1,1"), "--mean '0.5,x': give one number a channel"),
        (("--mean", "0.5,0.5", "--std", "1,1"), "images have 1 or 3 channels"),
        (("--mean", "0,0,0", "--std", "1,0,1"), "stds above 0"),
        (("--mean", "nan,0,0", "--std", "1,1,1"), "give one number a channel"),
        (("--crop", "1.5"), "crop 1.5"),
        (("--resize", "cubist"), "choose one of nearest, bilinear, bicubic"),
        (("--limit", "0"), "limit 0: it must be at least 1"),
    ],
)
def test_options_that_cannot_be_are_one_line(run: Run, options: tuple[str, ...], message: str) -> None:
    assert message in run("build", *OWN, *options, code=2)[0]


def test_a_mean_for_another_number_of_channels_is_one_line(run: Run, tmp_path: Path) -> None:
    run("build", *OWN)
    folder = photos(tmp_path / "photos", ("a",))
    said, _ = run("verify", *OWN, "--data", folder, "--mean", "0.5", "--std", "0.5", code=2)
    assert "takes inputs of shape (3, 8, 8), there are 1 means" in said


def test_a_recipes_preparation_can_be_overridden(run: Run, tmp_path: Path) -> None:
    source = source_of(NetworkChoice("resmlp_12", image_size=64))
    assert source.recipe.mean == (0.485, 0.456, 0.406)
    changed = source.with_images(Selection("resmlp_12", mean=(0.5,) * 3, std=(0.5,) * 3))
    assert changed.recipe.mean == (0.5,) * 3 and changed.recipe.crop == source.recipe.crop
    (spec,) = changed.specs()
    assert spec.black == (-1.0,) * 3


@pytest.mark.slow
def test_a_folder_of_images_in_python(run: Run, tmp_path: Path) -> None:
    import image_nets  # type: ignore[import-not-found]

    folder = photos(tmp_path / "photos", tuple("0123456789"))
    example = np.zeros((2, 3, 8, 8), np.float32)
    plain = mlpdeploy.compile(image_nets.Net(), example, precision="fp32", backend="onnxruntime", batch="1:2:4")
    with pytest.raises(InputError, match=r"how the images of python:Net are prepared is not known"):
        plain.verify(data=folder)
    half = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    found = plain.verify(data=folder, limit=7, **half)  # type: ignore[arg-type]
    assert found.passed and found.data[0] == f"7 images below {folder}, of 20, labelled"
    told = mlpdeploy.compile(
        image_nets.Net(), example, precision="int8", backend="onnxruntime", batch="1:2:4", calibration=folder,
        calibrator="max", **half,
    )  # fmt: skip
    assert "mean 0.5, 0.5, 0.5" in told.verify(data=folder).data[1]


@pytest.mark.slow
def test_an_output_that_never_changes_is_told_by_the_int8_build(run: Run, tmp_path: Path) -> None:
    """Or its lines about calibration, accuracy and what INT8 is worth mislead."""
    folder = photos(tmp_path / "photos", tuple("0123456789"))
    silent = ("image_nets:silent", *OWN[1:3], "--precision", "int8", "--backend", "onnxruntime", "--batch", "1:2:4")
    document, told = run("build", *silent, "--calibration", folder, *HALF)
    note = "output 'output' of the network is the same for every input"
    assert f"note: {note}" in told
    (kept,) = document["manifest"]["notes"]
    assert kept.startswith(note)
    assert note in (Path(document["folder"]) / "report.md").read_text(encoding="utf-8")
    assert note in run("verify", *silent)[0]["notes"][0]
    assert f"note: {note}" in run("sensitivity", *silent[:3], "--calibration", folder, *HALF)[1]
