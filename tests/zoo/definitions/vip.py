"""Vision Permutator: arXiv 2106.12368, section 3, the branches weighed as in WeightedPermuteMLP."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.zoo.definitions.tensors import Keys, mlp, shares


def outputs(name: str, keys: Keys, image: Tensor) -> Tensor:
    """Images (b, 3, h, w) to logits (b, classes). In between tokens are (b, h, w, c)."""
    embed = keys / "patch_embed" / "proj"
    x = embed.conv(image, embed["weight"].shape[-1]).permute(0, 2, 3, 1)
    for stage in (keys / "network").each():
        if "proj" in stage:
            x = (stage / "proj").conv(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
            continue
        for block in stage.each():
            x = x + _permuted(block / "attn", (block / "norm1").layer_norm(x, 1e-5))
            x = x + mlp(block / "mlp", (block / "norm2").layer_norm(x, 1e-5))
    return (keys / "head").linear((keys / "norm").layer_norm(x, 1e-5).mean((1, 2)))


def _permuted(at: Keys, x: Tensor) -> Tensor:
    """With c = (n s): contractions over (h, s), over (w, s) and over (n, s)."""
    b, h, w, c = x.shape
    parts = x.reshape(b, h, w, h, c // h)
    matrices = [(at / f"mlp_{way}")["weight"].reshape(h, c // h, h, c // h) for way in "hw"]
    y_h = torch.einsum("bhwns,kuhs->bkwnu", parts, matrices[0]).reshape(x.shape)
    y_w = torch.einsum("bhwns,kuws->bhknu", parts, matrices[1]).reshape(x.shape)
    branches = [y_h, y_w, (at / "mlp_c").linear(x)]
    weights = shares(mlp(at / "reweight", sum(branches).mean((1, 2))))
    return (at / "proj").linear(sum(one[:, None, None] * y for one, y in zip(weights, branches, strict=True)))
