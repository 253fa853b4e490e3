"""Real data and trained networks for the tests: scikit-learn's digits, and a ViP and a Mixer that read them.

The weights in `tests/fixtures` were trained by `benchmarks/train_digits.py`; the files say how (configuration, seed
of the split, accuracy) in their own metadata.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.models.mlp_mixer import MlpMixer
from torch import nn

from mlpdeploy.zoo.vip import VisionPermutator

FIXTURES = Path(__file__).parent / "fixtures"
TEST_IMAGES = 600

Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def split(seed: int) -> Split:
    """Train images, train labels, test images, test labels: 1197 and 600 digits, every class in proportion.

    Images are (n, 1, 8, 8) float32 in [-1, 1]; labels are int64.
    """
    digits = load_digits()
    images = (digits.images.astype(np.float32) / 8.0 - 1.0)[:, None]
    train, test, train_labels, test_labels = train_test_split(
        images, digits.target.astype(np.int64), test_size=TEST_IMAGES, random_state=seed, stratify=digits.target
    )
    return train, train_labels, test, test_labels


def make_network(name: str, config: dict[str, Any]) -> nn.Module:
    """The untrained network: `vip_digits` (arguments of VisionPermutator) or `mixer_digits` (of timm's MlpMixer)."""
    match name:
        case "vip_digits":
            return VisionPermutator(**config)
        case "mixer_digits":
            return MlpMixer(**config)
    raise ValueError(f"no digits network is called {name!r}; there are vip_digits and mixer_digits")


def fixture(name: str) -> Path:
    """Where the trained weights of `name` are."""
    return FIXTURES / f"{name}.safetensors"


def load(name: str) -> tuple[nn.Module, np.ndarray, np.ndarray]:
    """The trained network in eval mode, the test images (600, 1, 8, 8) float32 and their labels (600,) int64."""
    with safe_open(fixture(name), framework="pt") as file:
        metadata = file.metadata()
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    network = make_network(name, json.loads(metadata["config"]))
    network.load_state_dict(weights, strict=True)
    _, _, images, labels = split(int(metadata["split_seed"]))
    return network.eval().requires_grad_(False), images, labels


def accuracy(network: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of images whose largest logit is at the label."""
    with torch.inference_mode():
        logits = network(torch.from_numpy(images))
    return float((logits.argmax(1).numpy() == labels).mean())
