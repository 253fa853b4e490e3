"""Hire-MLP: arXiv 2108.13341, section 3: regions of `pixel` rows mixed together, moved from block to block."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.zoo.definitions.tensors import Keys, gelu, relu, shares

PIXELS, STRIDES, DILATIONS = (4, 3, 3, 2), (2, 2, 3, 2), (2, 2, 1, 1)
"""By stage: rows of a region; after how many blocks, and by how many rows, moves repeat."""


def outputs(name: str, keys: Keys, image: Tensor) -> Tensor:
    """Images (b, 3, h, w) to logits (b, classes)."""
    x = _embedded(keys / "patch_embed", image, 4, 2)
    for place, stage in enumerate((keys / "network").each()):
        if place % 2:
            x = _embedded(stage, x, 2, 1)
            continue
        for index, block in enumerate(stage.each()):
            step = index % STRIDES[place // 2] * DILATIONS[place // 2]
            x = x + _mixed(block / "attn", (block / "norm1").batch_norm(x), PIXELS[place // 2], step)
            x = x + _mlp(block / "mlp", (block / "norm2").batch_norm(x))
    return (keys / "head").linear((keys / "norm").batch_norm(x).mean((2, 3)))


def _embedded(at: Keys, x: Tensor, stride: int, padding: int) -> Tensor:
    return relu((at / "norm").batch_norm((at / "proj").conv(x, stride, padding)))


def _mlp(at: Keys, x: Tensor) -> Tensor:
    return (at / "fc2").conv(gelu((at / "fc1").conv(x)))


def _mixed(at: Keys, x: Tensor, pixel: int, step: int) -> Tensor:
    branches = [_regions(at, "h", x, pixel, step), _regions(at, "w", x.mT, pixel, step).mT, (at / "mlp_c").conv(x)]
    weights = shares(_mlp(at / "reweight", sum(branches).mean((2, 3), keepdim=True)).flatten(1))
    return (at / "proj").conv(sum(one[:, :, None, None] * y for one, y in zip(weights, branches, strict=True)))


def _regions(at: Keys, way: str, x: Tensor, pixel: int, step: int) -> Tensor:
    """Along the height: row i of a region reads row (region * pixel + i - step) of the image, all counted in circles.

    Rows past the end are those that the moved image begins with.
    """
    b, c, height, width = x.shape
    count = -(-height // pixel)
    rows = [place % height - step for place in range(count * pixel)]
    taken = x[:, :, rows].reshape(b, c, count, pixel, width).transpose(2, 3).reshape(b, c * pixel, count, width)
    hidden = relu((at / f"mlp_{way}1_norm").batch_norm((at / f"mlp_{way}1").conv(taken)))
    mixed = (at / f"mlp_{way}2").conv(hidden).reshape(b, c, pixel, count, width).transpose(2, 3)
    mixed = mixed.reshape(b, c, count * pixel, width)[:, :, :height]
    return torch.cat([mixed[:, :, step:], mixed[:, :, :step]], 2)
