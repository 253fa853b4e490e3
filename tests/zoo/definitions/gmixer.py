"""gMixer: MLP-Mixer whose MLPs are gated, W2(value * silu(gate)), value and gate being the halves of what W1 gives.

timm defines it, and nobody else does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.zoo.definitions.mixer import mixed
from tests.zoo.definitions.tensors import Keys


def outputs(name: str, keys: Keys, image: Tensor) -> Tensor:
    """Images (b, 3, h, w) to logits (b, classes)."""
    return mixed(keys, image, _gated)


def _gated(at: Keys, x: Tensor) -> Tensor:
    both = (at / "fc1").linear(x)
    value, gate = both[..., : both.shape[-1] // 2], both[..., both.shape[-1] // 2 :]
    return (at / "fc2").linear(value * gate / (1 + torch.exp(-gate)))
