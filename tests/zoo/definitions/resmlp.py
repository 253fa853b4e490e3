"""ResMLP: arXiv 2105.03404, equations 2 and 3: Aff(x) = alpha x + beta in place of norms."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.zoo.definitions.tensors import Keys, gelu, patches


def outputs(name: str, keys: Keys, image: Tensor) -> Tensor:
    """Images (b, 3, h, w) to logits (b, classes)."""
    x = patches(keys / "stem" / "proj", image)
    for block in (keys / "blocks").each():
        tokens, mlp = block / "linear_tokens", block / "mlp_channels"
        mixed = torch.einsum("mn,bnd->bmd", tokens["weight"], _aff(block / "norm1", x)) + tokens["bias"][:, None]
        x = x + block["ls1"] * mixed
        x = x + block["ls2"] * (mlp / "fc2").linear(gelu((mlp / "fc1").linear(_aff(block / "norm2", x))))
    return (keys / "head").linear(_aff(keys / "norm", x).mean(1))


def _aff(at: Keys, x: Tensor) -> Tensor:
    return at["alpha"] * x + at["beta"]
