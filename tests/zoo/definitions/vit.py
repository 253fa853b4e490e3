"""Vision Transformer: arXiv 2010.11929, equations 1 to 4, with the exact GELU of timm."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.zoo.definitions.tensors import Keys, gelu, patches, softmax

HEADS = 6


def outputs(name: str, keys: Keys, image: Tensor) -> Tensor:
    """Images (b, 3, h, w) to logits (b, classes)."""
    x = patches(keys / "patch_embed" / "proj", image)
    x = torch.cat([keys["cls_token"].expand(x.shape[0], -1, -1), x], 1) + keys["pos_embed"]
    for block in (keys / "blocks").each():
        x = x + _attention(block / "attn", (block / "norm1").layer_norm(x, 1e-6))
        hidden = gelu((block / "mlp" / "fc1").linear((block / "norm2").layer_norm(x, 1e-6)))
        x = x + (block / "mlp" / "fc2").linear(hidden)
    return (keys / "head").linear((keys / "norm").layer_norm(x, 1e-6)[:, 0])


def _attention(at: Keys, x: Tensor) -> Tensor:
    """The rows of `qkv` are queries, keys and values, each by heads."""
    b, n, c = x.shape
    q, k, v = (at / "qkv").linear(x).reshape(b, n, 3, HEADS, c // HEADS).unbind(2)
    weights = softmax(torch.einsum("bqhd,bkhd->bhqk", q, k) / (c // HEADS) ** 0.5, 3)
    return (at / "proj").linear(torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(b, n, c))
