"""MLP-Mixer: arXiv 2105.01601, equation 1."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from tests.zoo.definitions.tensors import Keys, mlp, patches


def outputs(name: str, keys: Keys, image: Tensor) -> Tensor:
    """Images (b, 3, h, w) to logits (b, classes)."""
    return mixed(keys, image, mlp)


def mixed(keys: Keys, image: Tensor, block_mlp: Callable[[Keys, Tensor], Tensor]) -> Tensor:
    """The same, the MLPs over tokens and channels being any."""
    x = patches(keys / "stem" / "proj", image)
    for block in (keys / "blocks").each():
        x = x + block_mlp(block / "mlp_tokens", (block / "norm1").layer_norm(x, 1e-6).mT).mT
        x = x + block_mlp(block / "mlp_channels", (block / "norm2").layer_norm(x, 1e-6))
    return (keys / "head").linear((keys / "norm").layer_norm(x, 1e-6).mean(1))
