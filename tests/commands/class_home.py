"""A network in hand, its engine and a folder of classes, for tests of `evaluate`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mlpdeploy.selection import Selection
from tests import digits

NETS = """
import torch
from tests import digits

def Digits():
    return digits.load("mixer_digits")[0]

class Infinite(torch.nn.Linear):
    def __init__(self):
        super().__init__(8, 10)
    def forward(self, x):
        return super().forward(x.mean((1, 2))) / (x.amax((1, 2, 3)) > -0.9)[:, None]
"""
HOW = {"input_shape": (1, 8, 8), "mean": (0.5,), "std": (0.5,), "crop": 1.0, "resize": "bilinear"}
COUNT = 101
"""Images, of which the last batch of four has one."""


def selection(home: Path, name: str = "Digits", batch: str = "2:4:8", **other: Any) -> Selection:
    """The network's engine in FP32, by ONNX Runtime."""
    return Selection(f"evaluate_nets:{name}", "fp32", "onnxruntime", batch, **{**HOW, "out": home / "out", **other})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the network and digits as images, in `val/<class>/`; the tests run there."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "evaluate_nets.py").write_text(NETS)
    _, images, labels = digits.load("mixer_digits")
    for place, (image, label) in enumerate(zip(images[:COUNT], labels, strict=False)):
        where = folder / "val" / str(label if place % 7 else (label + 1) % 10)  # some that no network gets right
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint((image[0] + 1) / 2 * 255).astype(np.uint8)).save(where / f"{place:03}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        yield folder


def right(folder: Path, *labels: str) -> tuple[int, int]:
    """On how many images of a folder of classes, or of these, PyTorch's first class is right, and one of its five."""
    network, first, five = digits.load("mixer_digits")[0], 0, 0
    for file in folder.rglob("*.png"):
        if labels and file.parent.name not in labels:
            continue
        with Image.open(file) as image:
            pixels = np.asarray(image, np.float32)[None, None] / 255 * 2 - 1
        best = network(torch.from_numpy(pixels))[0].topk(5).indices.tolist()
        label = int(file.relative_to(folder).parts[0])
        first, five = first + (best[0] == label), five + (label in best)
    return first, five
