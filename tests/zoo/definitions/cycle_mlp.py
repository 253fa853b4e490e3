"""CycleMLP: arXiv 2107.10224, section 3.2: channel i of a linear layer reads the token (i + 1) % 3 - 1 further on."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.zoo.definitions.tensors import Keys, mlp, shares


def outputs(name: str, keys: Keys, image: Tensor) -> Tensor:
    """Images (b, 3, h, w) to logits (b, classes). In between tokens are (b, h, w, c)."""
    x = (keys / "patch_embed" / "proj").conv(image, 4, 2).permute(0, 2, 3, 1)
    for stage in (keys / "network").each():
        if "proj" in stage:
            x = (stage / "proj").conv(x.permute(0, 3, 1, 2), 2, 1).permute(0, 2, 3, 1)
            continue
        for block in stage.each():
            x = x + _cycled(block / "attn", (block / "norm1").layer_norm(x, 1e-5))
            x = x + mlp(block / "mlp", (block / "norm2").layer_norm(x, 1e-5))
    return (keys / "head").linear((keys / "norm").layer_norm(x, 1e-5).mean((1, 2)))


def _cycled(at: Keys, x: Tensor) -> Tensor:
    along_w = (at / "sfc_h").linear(_read(x))
    along_h = (at / "sfc_w").linear(_read(x.transpose(1, 2)).transpose(1, 2))
    branches = [along_w, along_h, (at / "mlp_c").linear(x)]
    weights = shares(mlp(at / "reweight", sum(branches).mean((1, 2))))
    return (at / "proj").linear(sum(one[:, None, None] * y for one, y in zip(weights, branches, strict=True)))


def _read(x: Tensor) -> Tensor:
    """Every channel along the width from its own place, zeros from outside."""
    width = x.shape[2]
    found = torch.zeros_like(x)
    for channel in range(x.shape[3]):
        by = (channel + 1) % 3 - 1
        low, high = max(-by, 0), min(width, width - by)
        found[:, :, low:high, channel] = x[:, :, low + by : high + by, channel]
    return found
