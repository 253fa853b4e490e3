"""CSWin: arXiv 2107.00652, equations 1 to 5: half of the channels attends in upright stripes, half in lying ones."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.zoo.definitions.tensors import Keys, gelu, softmax

HEADS = {"t": (2, 4, 8, 16), "s": (2, 4, 8, 16), "b": (4, 8, 16, 32), "l": (6, 12, 24, 24)}


def outputs(name: str, keys: Keys, image: Tensor) -> Tensor:
    """Images (b, 3, h, w) to logits (b, classes). In between tokens are (b, h, w, c)."""
    size, large = name.split("_")[1], name.endswith("384")
    embed = keys / "stage1_conv_embed"
    x = (embed / 2).layer_norm((embed / 0).conv(image, 4, 2).permute(0, 2, 3, 1), 1e-5)
    for number, (stripe, heads) in enumerate(
        zip((1, 2, 12 if large else 7, 12 if large else 7), HEADS[size], strict=True)
    ):
        if number:
            merge = keys / f"merge{number}"
            x = (merge / "conv").conv(x.permute(0, 3, 1, 2), 2, 1).permute(0, 2, 3, 1)
            x = (merge / "norm").layer_norm(x, 1e-5)
        for block in (keys / f"stage{number + 1}").each():
            x = x + _attended(block, (block / "norm1").layer_norm(x, 1e-5), stripe, heads)
            hidden = gelu((block / "mlp" / "fc1").linear((block / "norm2").layer_norm(x, 1e-5)))
            x = x + (block / "mlp" / "fc2").linear(hidden)
    return (keys / "head").linear((keys / "norm").layer_norm(x, 1e-5).mean((1, 2)))


def _attended(at: Keys, x: Tensor, stripe: int, heads: int) -> Tensor:
    b, height, width, c = x.shape
    qkv = (at / "qkv").linear(x).reshape(b, height, width, 3, c)
    branches = (at / "attns").each()
    if len(branches) == 1:
        return (at / "proj").linear(_window(branches[0], qkv, heads, height, width))
    half = c // 2
    upright = _window(branches[0], qkv[..., :half], heads // 2, height, stripe)
    lying = _window(branches[1], qkv[..., half:], heads // 2, stripe, width)
    return (at / "proj").linear(torch.cat([upright, lying], 3))


def _window(at: Keys, qkv: Tensor, heads: int, high: int, wide: int) -> Tensor:
    """Attention in windows of high x wide tokens, and a depthwise 3x3 of the values that ends where a window does."""
    b, height, width, _, c = qkv.shape
    cut = qkv.reshape(b, height // high, high, width // wide, wide, 3, c).permute(5, 0, 1, 3, 2, 4, 6)
    q, k, v = cut.reshape(3, -1, high * wide, heads, c // heads)
    weights = softmax(torch.einsum("nqhd,nkhd->nhqk", q, k) * (c // heads) ** -0.5, 3)
    mixed = torch.einsum("nhqk,nkhd->nqhd", weights, v).reshape(-1, high, wide, c)
    near = (at / "get_v").conv(v.reshape(-1, high, wide, c).permute(0, 3, 1, 2), 1, 1, c).permute(0, 2, 3, 1)
    mixed = (mixed + near).reshape(b, height // high, width // wide, high, wide, c)
    return mixed.transpose(2, 3).reshape(b, height, width, c)
