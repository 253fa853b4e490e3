"""Activator: gated units without token mixing, whose LayerNorms are used twice, and feed-forward layers if any."""

from __future__ import annotations

from torch import Tensor

from tests.zoo.definitions.tensors import Keys, gelu, patches


def outputs(name: str, keys: Keys, image: Tensor) -> Tensor:
    """Images (b, 3, h, w) to logits (b, classes)."""
    x = patches(keys / "patcher", image)
    for block in (keys / "model").each():
        norm, unit = block / "norm", block / "actgu"
        z = norm.layer_norm(x, 1e-5)
        u = (unit / "norm").layer_norm(gelu((unit / "proj_1").linear(z)), 1e-5)
        v = (unit / "norm").layer_norm((unit / "proj_2").linear(z), 1e-5)
        x = x + (unit / "proj_3").linear(u * v)
        if "ffn" in block:
            net = block / "ffn" / "net"
            x = x + (net / 3).linear(gelu((net / 0).linear(norm.layer_norm(x, 1e-5))))
    return (keys / "classifier").linear(x.mean(1))
