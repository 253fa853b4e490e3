"""CycleMLP: a MLP-like architecture for dense prediction, Chen et al. 2021, arXiv 2107.10224.

Its Cycle FC projects the channels of a token, each taken from another place: channel i of k-step Cycle FC along the
width comes from the token that is (i + k // 2) mod k - k // 2 to the right, zeros beyond the border:

    y[o, h, w] = bias[o] + sum over i of W[o, i] x[i, h, w + (i + k // 2) mod k - k // 2]

and likewise along the height. The authors compute it as a deformable convolution with these constant offsets; here it
is a shift of every k-th channel and a projection. A third branch projects the channels in place, and the three are
weighed per image and channel as in ViP. Between the mixing layers, activations are channels last.

The names of the parameters are those of the authors' checkpoints, which load strictly; the offsets that these hold as
well cache constants of the architecture, and are left out (`read`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 3
"""Places from which the channels of a token come."""


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, on the last axis."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class CycleFC(nn.Module):
    """A projection of channels that come from neighbouring tokens along `dim`; (b, c, h, w) to the same."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(torch.empty(channels, channels, 1, 1))
        self.bias = nn.Parameter(torch.empty(channels))
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        size, reach = x.shape[self.dim], STEPS // 2
        padded = F.pad(x, (reach, reach, 0, 0) if self.dim == 3 else (0, 0, reach, reach))
        # Channel i = STEPS * m + r is displaced by (r + reach) % STEPS - reach; in `padded` that is where it starts.
        starts = [(r + reach) % STEPS for r in range(STEPS)]
        shifted = torch.cat([padded[:, r::STEPS].narrow(self.dim, start, size) for r, start in enumerate(starts)], 1)
        weight = torch.cat([self.weight[:, r::STEPS] for r in range(STEPS)], 1)
        return F.conv2d(shifted, weight, self.bias)


class CycleMLP(nn.Module):
    """Mixing along width, height and channels with learned weights for the three; (b, h, w, c) to the same.

    The names are the authors': `sfc_h` takes channels along the width and `sfc_w` along the height. All three
    branches and the projection behind them work on channels that come first, as the shifts do.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp_c = nn.Linear(dim, dim, bias=False)
        self.sfc_h = CycleFC(dim, 3)
        self.sfc_w = CycleFC(dim, 2)
        self.reweight = Mlp(dim, dim // 4, dim * 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, _, _, c = x.shape
        grid = x.permute(0, 3, 1, 2)
        along_w, along_h = self.sfc_h(grid), self.sfc_w(grid)
        along_c = F.conv2d(grid, self.mlp_c.weight[:, :, None, None])
        pooled = (along_w + along_h + along_c).mean((2, 3))
        # The branch is the fastest axis of the 3c outputs of fc2: row 3*channel + branch.
        weights = self.reweight(pooled).reshape(b, c, 3).permute(2, 0, 1).softmax(0).unsqueeze(3).unsqueeze(3)
        mixed = along_w * weights[0] + along_h * weights[1] + along_c * weights[2]
        return F.conv2d(mixed, self.proj.weight[:, :, None, None], self.proj.bias).permute(0, 2, 3, 1)


class CycleBlock(nn.Module):
    """x + attn(norm1 x), then x + mlp(norm2 x); (b, h, w, c) to the same."""

    def __init__(self, dim: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = CycleMLP(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, dim * mlp_ratio, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """A strided convolution with overlapping patches: (b, 3, h, w) to (b, c, h', w')."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=7, stride=4, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class Downsample(nn.Module):
    """A strided convolution, channels last: (b, h, w, c) to (b, h', w', c')."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, out, kernel_size=3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class CycleNet(nn.Module):
    """The classifier: images (b, 3, h, w) of at least 3x3 to logits (b, num_classes).

    `layers`, `dims` and `mlp_ratios` have one entry per stage; the grid is halved between stages.
    Raises ValueError where an image is smaller than the patches of the embedding allow.
    """

    def __init__(
        self,
        layers: Sequence[int],
        dims: Sequence[int] = (64, 128, 320, 512),
        mlp_ratios: Sequence[int] = (4, 4, 4, 4),
        image_size: int = 224,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        _check_size(image_size, image_size)
        self.patch_embed = PatchEmbed(dims[0])
        network: list[nn.Module] = []
        for stage, (depth, dim) in enumerate(zip(layers, dims, strict=True)):
            network.append(nn.Sequential(*(CycleBlock(dim, mlp_ratios[stage]) for _ in range(depth))))
            if stage < len(layers) - 1:
                network.append(Downsample(dim, dims[stage + 1]))
        self.network = nn.ModuleList(network)
        self.norm = nn.LayerNorm(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        _check_size(x.shape[2], x.shape[3])
        x = self.patch_embed(x).permute(0, 2, 3, 1)
        for stage in self.network:
            x = stage(x)
        return self.head(self.norm(x.flatten(1, 2)).mean(1))


def _check_size(height: int, width: int) -> None:
    if min(height, width) < 3:
        raise ValueError(f"images of {height}x{width} are too small: the first convolution needs 3x3")


def read(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A checkpoint without the offsets of its deformable convolutions, buffers that hold the constants of `CycleFC`."""
    return {key: tensor for key, tensor in state.items() if not key.endswith(".offset")}, {}


def cyclemlp_b1(num_classes: int = 1000, image_size: int = 224) -> CycleNet:
    """CycleMLP-B1: 15.2 M parameters."""
    return CycleNet((2, 2, 4, 2), image_size=image_size, num_classes=num_classes)


def cyclemlp_b2(num_classes: int = 1000, image_size: int = 224) -> CycleNet:
    """CycleMLP-B2: 26.8 M parameters."""
    return CycleNet((2, 3, 10, 3), image_size=image_size, num_classes=num_classes)


def cyclemlp_b3(num_classes: int = 1000, image_size: int = 224) -> CycleNet:
    """CycleMLP-B3: 38.4 M parameters."""
    return CycleNet((3, 4, 18, 3), mlp_ratios=(8, 8, 4, 4), image_size=image_size, num_classes=num_classes)


def cyclemlp_b4(num_classes: int = 1000, image_size: int = 224) -> CycleNet:
    """CycleMLP-B4: 51.8 M parameters."""
    return CycleNet((3, 8, 27, 3), mlp_ratios=(8, 8, 4, 4), image_size=image_size, num_classes=num_classes)


def cyclemlp_b5(num_classes: int = 1000, image_size: int = 224) -> CycleNet:
    """CycleMLP-B5: 75.7 M parameters."""
    return CycleNet((3, 4, 24, 3), (96, 192, 384, 768), image_size=image_size, num_classes=num_classes)
