"""gMLP: arXiv 2105.08050, figure 1 and equation 3; the second half of the channels is the gate."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.zoo.definitions.tensors import Keys, gelu, patches


def outputs(name: str, keys: Keys, image: Tensor) -> Tensor:
    """Images (b, 3, h, w) to logits (b, classes)."""
    x = patches(keys / "stem" / "proj", image)
    for block in (keys / "blocks").each():
        mlp = block / "mlp_channels"
        z = gelu((mlp / "fc1").linear((block / "norm").layer_norm(x, 1e-6)))
        u, v = z[..., : z.shape[-1] // 2], z[..., z.shape[-1] // 2 :]
        along, gate = mlp / "gate" / "proj", (mlp / "gate" / "norm").layer_norm(v, 1e-5)
        gate = torch.einsum("mn,bnd->bmd", along["weight"], gate) + along["bias"][:, None]
        x = x + (mlp / "fc2").linear(u * gate)
    return (keys / "head").linear((keys / "norm").layer_norm(x, 1e-6).mean(1))
