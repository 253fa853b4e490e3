"""Feed-forward layers in place of attention: arXiv 2105.02723. The channels first, then the tokens, class token too."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.zoo.definitions.tensors import Keys, mlp, patches


def outputs(name: str, keys: Keys, image: Tensor) -> Tensor:
    """Images (b, 3, h, w) to logits (b, classes)."""
    embed, places = keys / "patch_embed" / "proj", keys / "pos_encoding"
    x, side = patches(embed, image), image.shape[-1] // embed["weight"].shape[-1]
    grid = places["pos_embed"]
    if grid.shape[-1] != side:  # a constant; align_corners is off
        grid = F.interpolate(grid, size=(side, side), mode="bilinear", align_corners=False)
    x = x + grid.flatten(2).mT
    first = (keys["cls_token"] + places["cls_pos_embed"]).expand(x.shape[0], -1, -1)
    x = torch.cat([first, x], 1)
    for block in (keys / "blocks").each():
        x = x + mlp(block / "mlp1", (block / "norm1").layer_norm(x, 1e-6))
        x = (x.mT + mlp(block / "mlp2", (block / "norm2").layer_norm(x.mT, 1e-6))).mT
    return (keys / "head").linear((keys / "norm").layer_norm(x, 1e-6)[:, 0])
