"""MLP-Mixer: arXiv 2105.01601, equation 1."""

from __future__ import annotations

from torch import Tensor

from tests.zoo.definitions.tensors import Keys, gelu, patches


def outputs(name: str, keys: Keys, image: Tensor) -> Tensor:
    """Images (b, 3, h, w) to logits (b, classes)."""
    x = patches(keys / "stem" / "proj", image)
    for block in (keys / "blocks").each():
        x = x + _mlp(block / "mlp_tokens", (block / "norm1").layer_norm(x, 1e-6).mT).mT
        x = x + _mlp(block / "mlp_channels", (block / "norm2").layer_norm(x, 1e-6))
    return (keys / "head").linear((keys / "norm").layer_norm(x, 1e-6).mean(1))


def _mlp(at: Keys, x: Tensor) -> Tensor:
    return (at / "fc2").linear(gelu((at / "fc1").linear(x)))
