"""RaftMLP: arXiv 2108.04384, section 3: channels c = (r o), mixed with the rows and with the columns by rafts r."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.zoo.definitions.tensors import Keys, gelu

LEVELS = {"raft_mlp_r1": 1, "raft_mlp_r2": 2, "raft_mlp_r4": 4, "raft_mlp_deep": 2, "raft_org_mixer": 0}
"""Rafts of those with one level, of patches of 16x16; 0: all tokens are mixed at once."""
SCALES = {4: (4, 8), 2: (2, 4)}
"""Patches of the embeddings of levels that have more than one."""


def outputs(name: str, keys: Keys, image: Tensor) -> Tensor:
    """Images (b, 3, h, w) to logits (b, classes). In between tokens are (b, h, w, c)."""
    x, rafts = image.permute(0, 2, 3, 1), LEVELS.get(name, 2)
    patches = (16,) if name in LEVELS else (4, 2, 2, 2)
    levels = (keys / "levels").each()
    for place, (level, patch) in enumerate(zip(levels, patches, strict=True)):
        several = name in ("raft_mlp_s", "raft_mlp_m", "raft_mlp_l")
        scales = SCALES[patch] if several and place < 3 else (patch,)
        x = _embedded(level / "fn", x, scales, several)
        for block in (level / "fn").each()[1:]:
            x = _mixed(block, x, rafts)
    return (keys / "classifier").linear((keys / "heads" / 0 / 1).layer_norm(x, 1e-5).mean((1, 2)))


def _embedded(at: Keys, x: Tensor, scales: tuple[int, ...], several: bool) -> Tensor:
    """Patches of each scale around the same centres, one after another as (c h w); of one alone, as (h w c)."""
    stride, (b, height, width, _) = scales[0], x.shape
    first = x.permute(0, 3, 1, 2)
    rows = []
    for scale in scales:
        pad = (scale - stride) // 2
        cut = F.pad(first, (pad, pad, pad, pad)).unfold(2, scale, stride).unfold(3, scale, stride)
        order = (0, 2, 3, 1, 4, 5) if several else (0, 2, 3, 4, 5, 1)
        rows.append(cut.permute(order).reshape(b, height // stride, width // stride, -1))
    return (at / 0 / "fc" if several else at / 1).linear(torch.cat(rows, -1))


def _mixed(at: Keys, x: Tensor, rafts: int) -> Tensor:
    b, h, w, c = x.shape
    if not rafts:
        tokens = x.reshape(b, h * w, c)
        z = (at / 1 / "norm" / 1).layer_norm(tokens, 1e-5).mT
        x = (tokens + _mlp(at / 1, z).mT).reshape(x.shape)
        return x + _mlp(at / 3, (at / 3 / "norm").layer_norm(x, 1e-5))
    for place, axis in ((1, "h"), (3, "w")):
        # The norm's channels are (o r).
        z = x.reshape(b, h, w, rafts, c // rafts).transpose(3, 4).reshape(x.shape)
        z = (at / place / "norm" / 1).layer_norm(z, 1e-5).reshape(b, h, w, c // rafts, rafts)
        order = (0, 2, 3, 4, 1) if axis == "h" else (0, 1, 3, 4, 2)
        mixed = _mlp(at / place, z.permute(order).flatten(3)).unflatten(3, (rafts, -1))
        back = (0, 4, 1, 3, 2) if axis == "h" else (0, 1, 4, 3, 2)
        x = x + mixed.permute(back).reshape(x.shape)
    return x + _mlp(at / 5, (at / 5 / "norm").layer_norm(x, 1e-5))


def _mlp(at: Keys, x: Tensor) -> Tensor:
    return (at / "fn" / 3).linear(gelu((at / "fn" / 0).linear(x)))
