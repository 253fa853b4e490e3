"""MS-MLP: arXiv 2202.06510, section 3.2: channels in groups, each moved in a circle, then mixed with its neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.zoo.definitions.tensors import Keys, gelu

DISTANCES = (-2, -1, 0, 1, 2)


def outputs(name: str, keys: Keys, image: Tensor) -> Tensor:
    """Images (b, 3, h, w) to logits (b, classes). Between stages there are patches of 2x2, a norm behind them."""
    x = _embedded(keys / "patch_embed", image)
    for stage in (keys / "layers").each():
        for block in (stage / "blocks").each():
            z = (block / "norm").layer_norm(_shifted(block, x).permute(0, 2, 3, 1), 1e-6)
            z = block["gamma"] * (block / "pwconv2").linear(gelu((block / "pwconv1").linear(z)))
            x = x + z.permute(0, 3, 1, 2)
        if "downsample" in stage:
            x = _embedded(stage / "downsample", x)
    return (keys / "head").linear((keys / "norm").layer_norm(x.mean((2, 3)), 1e-6))


def _embedded(at: Keys, x: Tensor) -> Tensor:
    side = (at / "proj")["weight"].shape[-1]
    return (at / "norm").layer_norm((at / "proj").conv(x, side).permute(0, 2, 3, 1), 1e-6).permute(0, 3, 1, 2)


def _shifted(block: Keys, x: Tensor) -> Tensor:
    """Of each group: along the width and along the height, moved by its distance, then a kernel for every channel."""
    size = -(-x.shape[1] // len(DISTANCES))
    ways = []
    for kernels, axis in (("dwconv_lr", 3), ("dwconv_td", 2)):
        parts = []
        for group, distance in enumerate(DISTANCES):
            part = x[:, group * size : (group + 1) * size]
            places = [(place - distance) % x.shape[axis] for place in range(x.shape[axis])]
            moved = part.index_select(axis, torch.tensor(places))
            conv = block / kernels / group
            parts.append(conv.conv(moved, 1, conv["weight"].shape[-1] // 2, part.shape[1]))
        ways.append(torch.cat(parts, 1))
    return ways[0] + ways[1]
