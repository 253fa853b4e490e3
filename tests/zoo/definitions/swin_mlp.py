"""Swin-MLP: Swin whose windows are mixed by one matrix a head; moved windows are padded with zeros, nothing turns."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.zoo.definitions.tensors import Keys, gelu, merged


def outputs(name: str, keys: Keys, image: Tensor) -> Tensor:
    """Images (b, 3, h, w) to logits (b, classes). In between tokens are (b, h, w, c)."""
    embed = keys / "patch_embed"
    x = (embed / "norm").layer_norm((embed / "proj").conv(image, 4).permute(0, 2, 3, 1), 1e-5)
    for stage in (keys / "layers").each():
        for place, block in enumerate((stage / "blocks").each()):
            x = x + _mixed(block / "spatial_mlp", (block / "norm1").layer_norm(x, 1e-5), bool(place % 2))
            hidden = gelu((block / "mlp" / "fc1").linear((block / "norm2").layer_norm(x, 1e-5)))
            x = x + (block / "mlp" / "fc2").linear(hidden)
        if "downsample" in stage:
            down = stage / "downsample"
            joined = merged(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            x = (down / "reduction").linear((down / "norm").layer_norm(joined, 1e-5))
    return (keys / "head").linear((keys / "norm").layer_norm(x, 1e-5).mean((1, 2)))


def _mixed(at: Keys, x: Tensor, moved: bool) -> Tensor:
    b, height, width, c = x.shape
    tokens = at["weight"].shape[1]
    window, heads = math.isqrt(tokens), at["weight"].shape[0] // tokens
    shift = window // 2 if moved and height > window else 0
    before, after = (window - shift, shift) if shift else (0, 0)
    padded = F.pad(x, (0, 0, before, after, before, after))
    rows, columns = padded.shape[1] // window, padded.shape[2] // window
    parts = padded.reshape(b, rows, window, columns, window, heads, c // heads)
    matrix = at["weight"].reshape(heads, window, window, window, window)
    mixed = torch.einsum("baiejnd,npqij->bapeqnd", parts, matrix)
    mixed = mixed + at["bias"].reshape(heads, window, window).permute(1, 2, 0)[:, None, :, :, None]
    mixed = mixed.reshape(padded.shape)
    return mixed[:, before : before + height, before : before + width]
