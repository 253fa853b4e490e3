"""AS-MLP: arXiv 2107.08391, section 3.2: five groups of channels, shifted by -2 to 2, zeros coming in."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.zoo.definitions.tensors import Keys, gelu, merged

SHIFTS = 5


def outputs(name: str, keys: Keys, image: Tensor) -> Tensor:
    """Images (b, 3, h, w) to logits (b, classes)."""
    x = (keys / "patch_embed" / "norm").group_norm((keys / "patch_embed" / "proj").conv(image, 4))
    for stage in (keys / "layers").each():
        for block in (stage / "blocks").each():
            x = x + _shifted(block / "axial_shift", (block / "norm1").group_norm(x))
            mlp = block / "mlp"
            x = x + (mlp / "fc2").conv(gelu((mlp / "fc1").conv((block / "norm2").group_norm(x))))
        if "downsample" in stage:
            down = stage / "downsample"
            x = (down / "reduction").conv((down / "norm").group_norm(merged(x)))
    return (keys / "head").linear((keys / "norm").group_norm(x).mean((2, 3)))


def _shifted(at: Keys, x: Tensor) -> Tensor:
    x = gelu((at / "norm1").group_norm((at / "conv1").conv(x)))
    along_w, along_h = gelu((at / "conv2_1").conv(_moved(x))), gelu((at / "conv2_2").conv(_moved(x.mT).mT))
    return (at / "conv3").conv((at / "norm2").group_norm(along_w + along_h))


def _moved(x: Tensor) -> Tensor:
    """Channel c along the width by c // ceil(channels / 5) - 2."""
    channels, width = x.shape[1], x.shape[3]
    found = torch.zeros_like(x)
    for channel in range(channels):
        by = channel // -(-channels // SHIFTS) - SHIFTS // 2
        low, high = max(by, 0), min(width, width + by)
        found[:, channel, :, low:high] = x[:, channel, :, low - by : high - by]
    return found
