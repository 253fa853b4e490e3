"""Scaling MLPs: arXiv 2306.13575, section 3: bottleneck blocks on flattened pixels (c h w), and a plain MLP."""

from __future__ import annotations

from torch import Tensor

from tests.zoo.definitions.tensors import Keys, gelu


def outputs(name: str, keys: Keys, image: Tensor) -> Tensor:
    """Images (b, 3, h, w) to logits (b, classes). The norms lie beside the layers; the plain MLP has no skips."""
    x = (keys / "linear_in").linear(image.flatten(1))
    norms = (keys / "layernorms").each()
    if "blocks" in keys:
        for norm, block in zip(norms, (keys / "blocks").each(), strict=True):
            thin = block / "block"
            x = x + (thin / 2).linear(gelu((thin / 0).linear(norm.layer_norm(x, 1e-5))))
        return (keys / "linear_out").linear(x)
    for norm, layer in zip(norms, (keys / "layers").each(), strict=True):
        x = layer.linear(gelu(norm.layer_norm(x, 1e-5)))
    return (keys / "linear_out").linear(x)
