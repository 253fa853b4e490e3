"""Wave-MLP: arXiv 2111.12294, equations 4 to 9, with the pairing of channels of the authors' code."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.zoo.definitions.tensors import Keys, gelu, relu, shares

WIDE = ("wavemlp_t_dw", "wavemlp_t")
"""Those with BatchNorm; the others have GroupNorm of one group."""
BARE = ("wavemlp_m", "wavemlp_b")
"""Those without a norm behind the patch embedding and the downsamplings."""


def outputs(name: str, keys: Keys, image: Tensor) -> Tensor:
    """Images (b, 3, h, w) to logits (b, classes)."""

    def norm(at: Keys, x: Tensor) -> Tensor:
        return at.batch_norm(x) if name in WIDE else at.group_norm(x)

    def embedded(at: Keys, x: Tensor, stride: int, padding: int) -> Tensor:
        x = (at / "proj").conv(x, stride, padding)
        return x if name in BARE else norm(at / "norm", x)

    x = embedded(keys / "patch_embed", image, 4, 2)
    for place, stage in enumerate((keys / "network").each()):
        if place % 2:
            x = embedded(stage, x, 2, 1)
            continue
        for block in stage.each():
            x = x + _mixed(block / "attn", norm(block / "norm1", x))
            x = x + _mlp(block / "mlp", norm(block / "norm2", x))
    return (keys / "head").linear(norm(keys / "norm", x).mean((2, 3)))


def _mlp(at: Keys, x: Tensor) -> Tensor:
    return (at / "fc2").conv(gelu((at / "fc1").conv(x)))


def _mixed(at: Keys, x: Tensor) -> Tensor:
    """The phase-aware token mixing: along the width, along the height, and of each token alone, weighed per channel."""
    branches = [_summed(at, "h", x), _summed(at, "w", x).mT, (at / "fc_c").conv(x)]
    logits = _mlp(at / "reweight", sum(branches).mean((2, 3), keepdim=True))
    weighed = [w[:, :, None, None] * y for w, y in zip(shares(logits.flatten(1)), branches, strict=True)]
    return (at / "proj").conv(sum(weighed))


def _summed(at: Keys, way: str, x: Tensor) -> Tensor:
    """y[k, i, j] = sum over r, t of W[k, r, t] u[2k + r, i, j + t - 3], u being real parts, then imaginary ones.

    `h` sums along the width; `w` along the height, as the transposed map.
    """
    amplitude, phase = (at / f"fc_{way}").conv(x), _phase(at / f"theta_{way}_conv", x)
    waves = torch.cat([amplitude * phase.cos(), amplitude * phase.sin()], 1)
    waves = waves if way == "h" else waves.mT
    b, channels, rows, columns = waves.shape
    windows = F.pad(waves, (3, 3)).unfold(3, 7, 1).reshape(b, channels // 2, 2, rows, columns, 7)
    return torch.einsum("bkrijt,krt->bkij", windows, (at / f"tfc_{way}")["weight"].reshape(channels // 2, 2, 7))


def _phase(at: Keys, x: Tensor) -> Tensor:
    """relu(batch norm(convolution)): of 1x1, or depthwise of 3x3."""
    kernel = (at / 0)["weight"]
    wide = kernel.shape[2] // 2
    return relu((at / 1).batch_norm((at / 0).conv(x, 1, wide, groups=x.shape[1] if wide else 1)))
