"""Swin: arXiv 2103.14030, equations 3 and 4, in timm's layout: a stage starts with the merging of its patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.zoo.definitions.tensors import Keys, gelu, merged, softmax


def outputs(name: str, keys: Keys, image: Tensor) -> Tensor:
    """Images (b, 3, h, w) to logits (b, classes)."""
    return (keys / "head" / "fc").linear(features(keys, image))


def features(keys: Keys, image: Tensor) -> Tensor:
    """The mean over the normalised tokens of the last stage, (b, c). In between tokens are (b, h, w, c)."""
    embed = keys / "patch_embed"
    x = (embed / "norm").layer_norm((embed / "proj").conv(image, 4).permute(0, 2, 3, 1), 1e-5)
    stages = (keys / "layers").each()
    starts = "downsample" not in stages[0]
    for stage in stages:
        if starts and "downsample" in stage:
            x = _halved(stage / "downsample", x)
        for place, block in enumerate((stage / "blocks").each()):
            x = x + _attention(block / "attn", (block / "norm1").layer_norm(x, 1e-5), bool(place % 2))
            hidden = gelu((block / "mlp" / "fc1").linear((block / "norm2").layer_norm(x, 1e-5)))
            x = x + (block / "mlp" / "fc2").linear(hidden)
        if not starts and "downsample" in stage:
            x = _halved(stage / "downsample", x)
    return (keys / "norm").layer_norm(x, 1e-5).mean((1, 2))


def _halved(at: Keys, x: Tensor) -> Tensor:
    joined = merged(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return (at / "reduction").linear((at / "norm").layer_norm(joined, 1e-5))


def _attention(at: Keys, x: Tensor, moved: bool) -> Tensor:
    """In windows; in every other block these are moved by half, and what comes together from two ends stays apart."""
    b, height, width, c = x.shape
    table = at["relative_position_bias_table"]
    window, heads = (math.isqrt(table.shape[0]) + 1) // 2, table.shape[1]
    shift = window // 2 if moved and height > window else 0
    # Once moved, the last window of a row holds what was at both ends of it.
    regions = torch.tensor([2 if i >= height - shift else 1 if i >= height - window else 0 for i in range(height)])
    parts = _windows((3 * regions[:, None] + regions).reshape(1, height, width, 1), window)
    windows = _windows(_turned(x, -shift), window)
    q, k, v = (at / "qkv").linear(windows).unflatten(2, (3, heads, -1)).unbind(2)
    scores = torch.einsum("nqhd,nkhd->nhqk", q, k) / (c // heads) ** 0.5
    places = torch.tensor([(i, j) for i in range(window) for j in range(window)])
    apart = places[:, None] - places + window - 1
    scores = scores + table[apart[..., 0] * (2 * window - 1) + apart[..., 1]].permute(2, 0, 1)
    strangers = (parts != parts.mT).to(x.dtype) * (-100 if shift else 0)
    scores = (scores.unflatten(0, (b, -1)) + strangers[:, None]).flatten(0, 1)
    mixed = torch.einsum("nhqk,nkhd->nqhd", softmax(scores, 3), v).flatten(2)
    mixed = (at / "proj").linear(mixed).reshape(b, height // window, width // window, window, window, c)
    return _turned(mixed.transpose(2, 3).reshape(x.shape), shift)


def _turned(x: Tensor, by: int) -> Tensor:
    """Height and width moved by so many places, in circles."""
    for axis in (1, 2):
        size = x.shape[axis]
        x = x.index_select(axis, torch.tensor([(place - by) % size for place in range(size)]))
    return x


def _windows(x: Tensor, window: int) -> Tensor:
    b, h, w, c = x.shape
    cut = x.reshape(b, h // window, window, w // window, window, c).transpose(2, 3)
    return cut.reshape(-1, window * window, c)
