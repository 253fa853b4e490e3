"""Engines that take pixels and give answers: built, proved, called and kept, from Python and from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import mlpdeploy
from mlpdeploy.errors import InputError
from tests.conftest import Cli

MEAN, STD = (0.48, 0.45, 0.4), (0.22, 0.22, 0.23)

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc, self.head = (
            nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 10)
        )

    def forward(self, x):
        x = self.norm(self.conv(x).flatten(2).transpose(1, 2))
        return self.head(nn.functional.gelu(self.fc(x)).mean(1))
"""


def net() -> nn.Module:
    space: dict[str, type[nn.Module]] = {}
    exec(NET, space)
    torch.manual_seed(0)
    return space["Net"]().eval()


def compiled(network: nn.Module, **options: object) -> mlpdeploy.Engine:
    usual = {"precision": "fp32", "backend": "onnxruntime", "batch": "1:3:7", "mean": MEAN, "std": STD}
    return mlpdeploy.compile(network, torch.randn(2, 3, 16, 16), **{**usual, **options})  # type: ignore[arg-type]


def normalised(pixels: Tensor) -> Tensor:
    """Bytes (b, h, w, c) as the network takes them."""
    mean, std = (torch.tensor(one).reshape(3, 1, 1) for one in (MEAN, STD))
    return (pixels.permute(0, 3, 1, 2) / 255 - mean) / std


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", pytest.param("inductor", marks=pytest.mark.large)])
def test_pixels_in_answers_out(backend: str, tmp_path: Path) -> None:
    network = net()
    pixels = torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8)
    options = {"pixels": "hwc", "softmax": True, "topk": 3, "class_labels": list("abcdefghij")}
    with compiled(network, backend=backend, **options) as engine:
        scores, classes = engine(pixels)
        expected = network(normalised(pixels)).softmax(-1).topk(3)
        torch.testing.assert_close(scores, expected.values, rtol=0, atol=1e-5)
        assert torch.equal(classes, expected.indices) and (scores.dtype, classes.dtype) == (torch.float32, torch.int64)
        assert engine.verify().verdict() == "passed"
        folder = engine.save(tmp_path / "kept")
    with mlpdeploy.load(folder) as again:
        assert again.manifest["recipe"]["labels"] == list("abcdefghij")
        np.testing.assert_array_equal(again(pixels.numpy())[1], classes)
        assert again.verify(network).verdict() == "passed"


@pytest.mark.parametrize(("precision", "io"), [("fp16", "fp32"), ("fp16", "fp16"), ("bf16", "bf16"), ("int8", "fp32")])
def test_every_precision(precision: str, io: str) -> None:
    options = {"pixels": "chw:20x31", "resize": "bilinear", "topk": 2, "precision": precision, "io": io}
    if precision == "int8":
        options["calibration"] = "random"
    with compiled(net(), **options) as engine:
        assert [port["dtype"] for port in engine.inputs] == ["uint8"]
        assert engine.verify().verdict() == "passed"


@pytest.mark.slow
def test_a_plan_of_tensorrt_takes_bytes() -> None:
    pytest.importorskip("tensorrt_rtx")
    options = {"backend": "tensorrt-rtx", "precision": "fp16", "gpus": ("sm89",)}
    engine = compiled(net(), **options, pixels="hwc", softmax=True, topk=3)
    assert engine.verify().verdict() == "passed (engine not executed)"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (np.zeros((1, 16, 16, 3), np.float32), "takes uint8, it was given float32"),
        (np.full((1, 16, 16, 3), 256), "takes bytes, it was given 256 to 256"),
        (np.full((1, 16, 16, 3), -1), "takes bytes, it was given -1 to -1"),
        (np.zeros((1, 3, 16, 16), np.uint8), r"\[1, 3, 16, 16\]"),
    ],
    ids=["float", "high", "low", "layout"],
)
def test_what_are_no_pixels(given: np.ndarray, told: str) -> None:
    with compiled(net(), pixels="hwc") as engine, pytest.raises(InputError, match=told):
        engine(given)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"topk": 11}, "--topk 11: the network has 10 classes"),
        ({"class_labels": ["a"]}, "has 1 labels, and the network 10 classes"),
        ({"class_labels": "nowhere.txt"}, "nowhere.txt: cannot be read"),
        ({"pixels": "hwc", "mean": None, "std": None}, "give --mean and --std"),
    ],
    ids=["topk", "labels", "file", "mean"],
)
def test_what_cannot_be_served(options: dict[str, object], told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=told):
        compiled(net(), out=tmp_path / "out", **options)
    assert not list((tmp_path / "out").rglob("manifest.json"))


def test_images_are_prepared_as_the_engine_takes_them(tmp_path: Path) -> None:
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    for place in range(20):
        (folder / str(place % 10)).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (5 + place % 3, 6, 3)).astype(np.uint8)).resize((40, 30 + place))
        image.save(folder / str(place % 10) / f"{place}.png")
    network, found = net(), list[tuple[list[list[int]], object]]()
    for options in ({}, {"pixels": "hwc"}, {"pixels": "chw", "topk": 5, "softmax": True}, {"normalize": True}):
        with compiled(network, out=tmp_path / f"out{len(found)}", **options) as engine:
            assert engine.verify(data=folder).verdict() == "passed"
            evaluation = engine.evaluate(folder, workers=0)
            images = engine.predict(folder, top=3).images
        classes = [[guess.index for guess in one.guesses] for one in images]
        found.append((classes, {one.name: one.top1.right for one in evaluation.contenders}))
        assert evaluation.agreement is not None and evaluation.agreement.value == 1
    assert [one == found[0] for one in found] == [True] * 4


def test_what_too_few_classes_are_named_for(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "black.png")
    with compiled(net(), topk=2) as engine:
        with pytest.raises(InputError, match="gives the 2 largest scores and no probabilities"):
            engine.predict(tmp_path)
        with pytest.raises(InputError, match="names 2 classes, and top-5 takes 5"):
            engine.evaluate(tmp_path)


@pytest.mark.slow
def test_the_command_line(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "labels.txt").write_text("\n".join("abcdefghij"))
    options = [
        "net:Net", "--input-shape", "3,16,16", "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2", "--precision", "fp32",
        "--backend", "onnxruntime", "--batch", "1:2:4", "--pixels", "hwc:20x20", "--resize", "bilinear", "--softmax",
        "--topk", "3",
    ]  # fmt: skip
    cli("build", *options, "--labels", "labels.txt")
    folder = next(tmp_path.glob("artifacts/*/fp32/onnxruntime"))
    assert json.loads(cli("build", *options, "--labels", "labels.txt", "--json").stdout)["cached"]
    (tmp_path / "labels.txt").write_text("\n".join("ABCDEFGHIJ"))
    assert not json.loads(cli("build", *options, "--labels", "labels.txt", "--json").stdout)["cached"]
    assert "input uint8 batch x 20 x 20 x 3" in cli("inspect", folder).stdout
    assert cli("verify", folder).stdout.splitlines()[-1].startswith("passed")
    assert cli("verify", *options).stdout.splitlines()[-1].startswith("passed")
    asked = [word for word in options if word not in ("--topk", "3")]
    assert "topk None (built with 3)" in cli("verify", *asked, code=2).stderr
    cli("export", folder, "--folder", "given")
    assert {"output-classes.bin", "output-scores.bin"} <= {path.name for path in (tmp_path / "given").iterdir()}
