"""`mlpdeploy predict`: the classes are those of PyTorch, and what cannot be predicted is one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mlpdeploy import pipeline
from mlpdeploy.commands.predicting import predict
from mlpdeploy.errors import InputError, MlpdeployError
from mlpdeploy.network.labels import imagenet, read_labels
from mlpdeploy.selection import Selection
from tests import digits
from tests.terminal.conftest import said

__all__ = ["said"]

NETS = """
import torch
from tests import digits

def Digits():
    return digits.load("mixer_digits")[0]

class Infinite(torch.nn.Linear):
    def __init__(self):
        super().__init__(8, 4)
    def forward(self, x):
        return super().forward(x.mean((1, 2))) / (x.amax((1, 2, 3)) > -0.9)[:, None]

class Soft(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.network = Digits()
    def forward(self, x):
        return self.network(x).softmax(1)

class Best(Soft):
    def forward(self, x):
        return super().forward(x).argmax(1, keepdim=True)

class One(torch.nn.Linear):
    def __init__(self):
        super().__init__(8, 1)
    def forward(self, x):
        return super().forward(x.mean((1, 2)))

class Map(torch.nn.Conv2d):
    def __init__(self):
        super().__init__(1, 2, 1)
"""
HOW = {"input_shape": (1, 8, 8), "mean": (0.5,), "std": (0.5,), "crop": 1.0, "resize": "bilinear"}
COUNT = 30


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the network, digits as images and one file that is none; the tests run there."""
    folder = tmp_path_factory.mktemp("predict")
    (folder / "predict_nets.py").write_text(NETS)
    (folder / "images" / "deep").mkdir(parents=True)
    for place, image in enumerate(digits.load("mixer_digits")[1][:COUNT]):
        grey = np.rint((image[0] + 1) / 2 * 255).astype(np.uint8)
        where = folder / "images" / ("deep" if place % 2 else "")
        Image.fromarray(grey).save(where / f"{place:02}.png")
    (folder / "images" / "deep" / "broken.png").write_bytes(b"no image")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        yield folder
    sys.modules.pop("predict_nets", None)


def selection(home: Path, name: str = "Digits", batch: str = "2:4:8", **other: Any) -> Selection:
    asked = {**HOW, "out": home / "out", **other}
    return Selection(f"predict_nets:{name}", "fp32", "onnxruntime", batch, **asked)


def expected(file: Path) -> np.ndarray:
    """PyTorch's probabilities of the file that is called after the place of a digit."""
    with Image.open(file) as image:
        pixels = np.asarray(image, np.float32)[None, None] / 255 * 2 - 1
    with torch.no_grad():
        logits = digits.load("mixer_digits")[0](torch.from_numpy(pixels))
    return np.asarray(logits.softmax(1)[0])


@pytest.mark.parametrize("io", ["fp32", "fp16"])
def test_probabilities_are_those_of_pytorch(home: Path, io: str) -> None:
    asked = selection(home, io=io, out=home / io)
    pipeline.build(asked)
    found = predict(asked, [home / "images", home / "images" / "00.png"], top=3)
    assert len(found.images) == COUNT + 1 and [one.file.name for one in found.skipped] == ["broken.png"]
    for one in found.images:
        probabilities = expected(one.file)
        assert len(one.guesses) == 3 and one.guesses[0].index == probabilities.argmax()
        for guess in one.guesses:
            assert guess.label is None
            assert guess.probability == pytest.approx(probabilities[guess.index], abs=1e-4 if io == "fp32" else 1e-2)
        assert [guess.probability for guess in one.guesses] == sorted(
            (guess.probability for guess in one.guesses), reverse=True
        )
    assert found.images[-1].guesses == next(one for one in found.images if one.file.name == "00.png").guesses


def test_on_the_command_line(home: Path, said: Any) -> None:
    pipeline.build(selection(home))
    (home / "labels.txt").write_text("".join(f"digit {place}\n" for place in range(10)))
    (home / "labels.json").write_text(json.dumps({str(place): ["n", f"digit {place}"] for place in range(10)}))
    artifact = home / "out" / "predict_nets-Digits" / "fp32" / "onnxruntime"
    out, _ = said("predict", artifact, "images", "--labels", "labels.txt", "--top", "1")
    lines = out.splitlines()
    shown = Path("images/00.png")
    best = int(expected(shown).argmax())
    assert lines[0] == "images/00.png" and lines[1].endswith(f"  digit {best}")
    assert any(line.startswith("skipped images/deep/broken.png: is not a readable image") for line in lines)
    assert lines[-1].startswith("predict_nets:Digits fp32 with onnxruntime, weights as ")
    found = json.loads(said("predict", artifact, shown, "--labels", "labels.json", "--top", "99", "--json")[0])
    (image,) = found["images"]
    assert image["file"] == "images/00.png" and len(image["classes"]) == 10
    assert image["classes"][0]["index"] == best and image["classes"][0]["label"] == f"digit {best}"
    assert sum(one["probability"] for one in image["classes"]) == pytest.approx(1)


def test_what_cannot_be_predicted_is_one_line(home: Path, tmp_path: Path) -> None:
    asked = selection(home)
    pipeline.build(asked)
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "broken.png").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    for paths, line in (
        ([tmp_path / "only" / "broken.png"], "broken.png is not a readable image"),
        ([tmp_path / "nothing.png"], "No such file"),
        ([tmp_path / "only"], "none of the 1 images can be read; the first: .*broken.png is not"),
        ([tmp_path / "empty"], "no image below .*empty"),
    ):
        with pytest.raises(InputError, match=line) as raised:
            predict(asked, paths)
        assert "\n" not in str(raised.value) and "_io" not in str(raised.value)
    for top in (0, -1):
        with pytest.raises(InputError, match=f"--top {top}: it must be at least 1"):
            predict(asked, [home / "images"], top=top)


def test_networks_that_classify_no_images(home: Path) -> None:
    unprepared = {name: None for name in ("mean", "std", "crop", "resize")}
    for name, changes, line in (
        ("Map", {}, "predict_nets:Map gives no single row of scores"),
        ("Best", {}, "predict_nets:Best gives no single row of scores"),
        ("One", {}, "predict_nets:One gives no single row of scores"),
        ("Digits", unprepared, "how the images of predict_nets:Digits are prepared is not known: give --mean"),
        ("Digits", {"mean": (0.5,) * 3, "std": (0.5,) * 3}, "takes 1 channels, there are 3 means"),
    ):
        asked = selection(home, name, **{**changes, "out": home / "none"})
        pipeline.build(asked)
        with pytest.raises(InputError, match=line):
            predict(asked, [home / "images"])
    with pytest.raises(InputError, match="give --mean"):
        predict(selection(home, out=home / "none", **unprepared), [home / "images"])


def test_rows_that_are_probabilities_stay(home: Path) -> None:
    asked = selection(home, "Soft")
    pipeline.build(asked)
    (found,) = predict(asked, [home / "images" / "00.png"], top=2).images
    probabilities = expected(home / "images" / "00.png")
    assert found.guesses[0].probability == pytest.approx(probabilities.max(), abs=1e-4)


def test_outputs_that_are_not_finite_are_no_probabilities(home: Path, tmp_path: Path) -> None:
    asked = selection(home, "Infinite", "1")
    pipeline.build(asked)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "black.png")
    with pytest.raises(MlpdeployError, match=r"the engine's outputs for .*black.png are not all finite: run verify"):
        predict(asked, [tmp_path / "black.png"])


@pytest.mark.parametrize(
    ("name", "text", "labels"),
    [
        ("a.txt", "cat\ndog\n", ("cat", "dog")), ("a.txt", " cat \n\ndog", ("cat", "", "dog")),
        ("a.json", '["cat", "dog"]', ("cat", "dog")), ("a.json", '{"1": "dog", "0": ["n1", "cat"]}', ("cat", "dog")),
    ],
)  # fmt: skip
def test_labels(tmp_path: Path, name: str, text: str, labels: tuple[str, ...]) -> None:
    (tmp_path / name).write_text(text)
    assert read_labels(tmp_path / name, len(labels)) == labels
    with pytest.raises(InputError, match=f"has {len(labels)} labels, and the network 7 classes"):
        read_labels(tmp_path / name, 7)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b"{"),
        ("a.json", b"3"),
        ("a.json", b'{"1": "dog"}'),
        ("a.txt", b"\xff\xfe\xfa"),
        ("missing.txt", None),
        ("a.json", b"[null, 1]"),
    ],
)
def test_labels_that_cannot_be_read(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"--labels .*: cannot be read \(") as raised:
        read_labels(tmp_path / name, 2)
    assert "\n" not in str(raised.value)


def test_imagenet_has_a_thousand() -> None:
    labels = imagenet()
    assert len(labels) == 1000 and labels[0] == "tench, Tinca tinca" and labels[281] == "tabby, tabby cat"
