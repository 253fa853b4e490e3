"""MetaFormer: arXiv 2111.11418, section 3, its token mixers: pooling, none, a matrix over the tokens, attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.zoo.definitions.tensors import Keys, gelu, softmax, standardised

HEAD = 32
"""Channels of a head of attention."""


def outputs(name: str, keys: Keys, image: Tensor) -> Tensor:
    """Images (b, 3, h, w) to logits (b, classes)."""
    x = (keys / "patch_embed" / "proj").conv(image, 4, 2)
    attends = name in ("metaformer_pppa_s12_224", "metaformer_ppaa_s12_224")
    for stage in (keys / "network").each():
        if "proj" in stage:
            x = (stage / "proj").conv(x, 2, 1)
        elif "pos_embed" in stage:
            x = x + stage["pos_embed"]
        else:
            for block in stage.each():
                z = _norm(block / "norm1", x, attends)
                x = x + block["layer_scale_1"][:, None, None] * _mixed(name, block / "token_mixer", z)
                z = (block / "mlp" / "fc1").conv(_norm(block / "norm2", x, attends))
                x = x + block["layer_scale_2"][:, None, None] * (block / "mlp" / "fc2").conv(gelu(z))
    return (keys / "head").linear(_norm(keys / "norm", x, attends).mean((2, 3)))


def _norm(at: Keys, x: Tensor, attends: bool) -> Tensor:
    """Over channels and grid together; in networks with attention over the channels of each token."""
    if not attends:
        return at.group_norm(x)
    shape = (-1, 1, 1)
    return standardised(x, 1, 1e-5) * at["weight"].reshape(shape) + at["bias"].reshape(shape)


def _mixed(name: str, at: Keys, x: Tensor) -> Tensor:
    if "qkv" in at:
        return _attention(at, x)
    if "fc" in at:
        b, c, h, w = x.shape
        return torch.einsum("bcn,mn->bcm", x.flatten(2), (at / "fc")["weight"]).reshape(b, c, h, w)
    if name == "metaformer_id_s12":
        return x
    windows = F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1).sum((4, 5))
    inside = F.pad(torch.ones_like(x), (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1).sum((4, 5))
    return windows / inside - x


def _attention(at: Keys, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    q, k, v = (at / "qkv").linear(x.flatten(2).mT).reshape(b, h * w, 3, c // HEAD, HEAD).unbind(2)
    weights = softmax(torch.einsum("bqhd,bkhd->bhqk", q, k) / HEAD**0.5, 3)
    return (at / "proj").linear(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)).mT.reshape(x.shape)
