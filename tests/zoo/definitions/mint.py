"""Minimal transformers: arXiv 2410.13732, sections 2 to 4, with post-norm layers as A. Badaoui's implementation."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.zoo.definitions.tensors import Keys, gelu, patches, softmax

FOUR_HEADS = ("mint_unchanged", "mint_unchanged_mlp", "mint_symmetry")
"""The others have one."""


def outputs(name: str, keys: Keys, image: Tensor) -> Tensor:
    """Images (b, 3, h, w) to logits (b, classes)."""
    embedding, heads = keys / "embedding", 4 if name in FOUR_HEADS else 1
    x = patches(embedding / "patcher" / 0, image)
    x = torch.cat([embedding["cls_token"].expand(x.shape[0], -1, -1), x], 1) + embedding["position_embeddings"]
    for layer in (keys / "transformer_encoder" / "layers").each():
        x = (layer / "norm1").layer_norm(x + _attention(layer / "self_attn", x, heads), 1e-5)
        if "mlp" in layer:
            hidden = gelu((layer / "mlp" / 0).linear(x))
            x = (layer / "norm2").layer_norm(x + (layer / "mlp" / 2).linear(hidden), 1e-5)
    return (keys / "classifier").linear(x[:, 0])


def _attention(at: Keys, x: Tensor, heads: int) -> Tensor:
    size = x.shape[2] // heads
    values = (at / "value").linear(x) if "value" in at else x
    parts = []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        weights = softmax(_scores(at, x, head, own) / size**0.5, 2)
        parts.append(weights @ values[:, :, own])
    mixed = torch.cat(parts, 2)
    return (at / "out").linear(mixed) if "out" in at else mixed


def _scores(at: Keys, x: Tensor, head: int, own: slice) -> Tensor:
    """Of one head, (b, queries, keys), before the scale."""
    if "query" in at:
        return (at / "query").linear(x)[:, :, own] @ (at / "key").linear(x)[:, :, own].mT
    if "qk" in at:
        return (at / "qk").linear(x) @ x.mT
    packed, size = at["trainable_params"][head], own.stop - own.start
    lower = torch.zeros(size, size, dtype=x.dtype)
    for row in range(size):
        lower[row, : row + 1] = packed[row * (row + 1) // 2 :][: row + 1]
    factor = x[:, :, own] @ lower
    return factor @ factor.mT
