"""MS-MLP, mixing and shifting: exploiting global and local dependencies in vision MLPs, Zheng et al. 2022,
arXiv 2202.06510.

Notation: `b` batch, `c` channels in five groups, `h w` token grid. A block moves each group by its own distance around
the grid, along the width and along the height, mixes each of the two results depthwise, and adds them:

    z_i = dw_lr_i(roll(x_i, d_i along w)) + dw_td_i(roll(x_i, d_i along h))         kernels m_i x m_i, zero padding
    out = x + gamma * pwconv2(gelu(pwconv1(norm(z))))

The groups are as wide as torch.chunk makes them, the last one narrower: 96 channels are 20, 20, 20, 20, 16. The names
of the parameters are those of the authors' checkpoints, which therefore load strictly and unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DISTANCES = (-2, -1, 0, 1, 2)
"""By how much each group of channels is moved."""

MIXES = ((1, 1, 3, 5, 7), (1, 3, 3, 5, 7), (1, 5, 5, 5, 7), (1, 7, 7, 7, 7))
"""The kernel of each group in each of the four stages."""

PATCH = 4
SMALLEST = PATCH << (len(MIXES) - 1)
"""Side of the smallest image: one token in the last stage."""

EPS = 1e-6


class MixShiftBlock(nn.Module):
    """One block; (b, dim, h, w) to the same."""

    def __init__(self, dim: int, mixes: Sequence[int], ratio: int) -> None:
        super().__init__()
        width = -(-dim // len(DISTANCES))
        self.widths = [min(width, dim - start) for start in range(0, dim, width)]
        self.dwconv_lr = self._mixers(mixes)
        self.dwconv_td = self._mixers(mixes)
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.pwconv1 = nn.Linear(dim, ratio * dim)
        self.pwconv2 = nn.Linear(ratio * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6))

    def _mixers(self, mixes: Sequence[int]) -> nn.ModuleList:
        pairs = zip(self.widths, mixes, strict=True)
        return nn.ModuleList(nn.Conv2d(width, width, m, padding=m // 2, groups=width) for width, m in pairs)

    def forward(self, x: Tensor) -> Tensor:
        groups = x.split(self.widths, 1)
        along_w = [mix(g.roll(d, 3)) for mix, g, d in zip(self.dwconv_lr, groups, DISTANCES, strict=True)]
        along_h = [mix(g.roll(d, 2)) for mix, g, d in zip(self.dwconv_td, groups, DISTANCES, strict=True)]
        mixed = self.norm((torch.cat(along_w, 1) + torch.cat(along_h, 1)).permute(0, 2, 3, 1))
        mixed = self.gamma * self.pwconv2(F.gelu(self.pwconv1(mixed)))
        return x + mixed.permute(0, 3, 1, 2)


class PatchEmbed(nn.Module):
    """A strided convolution and a LayerNorm over the channels behind it; (b, c, h, w) to (b, c', h/size, w/size)."""

    def __init__(self, in_chans: int, dim: int, size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, size, size)
        self.norm = nn.LayerNorm(dim, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Blocks, and a halving of the grid behind them unless it is the last stage; (b, dim, h, w) to (b, c, h', w')."""

    def __init__(self, dim: int, depth: int, mixes: Sequence[int], ratio: int, last: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(MixShiftBlock(dim, mixes, ratio) for _ in range(depth)))
        self.downsample = nn.Identity() if last else PatchEmbed(dim, dim * 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.blocks(x))


class MSMLP(nn.Module):
    """The classifier: images (b, in_chans, image_size, image_size) to logits (b, num_classes).

    `depths` and `mixes` have one entry per stage; stage i has `dim` * 2**i channels. Raises ValueError where these do
    not fit, and for images that leave the last stage without a token. No weight depends on the image's size.
    """

    def __init__(
        self,
        dim: int,
        depths: Sequence[int],
        mixes: Sequence[Sequence[int]] = MIXES,
        ratio: int = 4,
        image_size: int = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        if len(depths) != len(mixes):
            raise ValueError(
                f"MS-MLP needs kernels for each stage: {len(depths)} stages, {len(mixes)} lists of kernels"
            )
        if len(range(0, dim, -(-dim // len(DISTANCES)))) != len(DISTANCES):
            raise ValueError(f"MS-MLP moves {len(DISTANCES)} groups of channels: {dim} make fewer")
        if image_size < SMALLEST:
            raise ValueError(f"MS-MLP needs images of at least {SMALLEST}x{SMALLEST}, got {image_size}")
        self.image_size = image_size
        self.patch_embed = PatchEmbed(in_chans, dim, PATCH)
        last = len(depths) - 1
        self.layers = nn.Sequential(
            *(Stage(dim << i, depth, mixes[i], ratio, i == last) for i, depth in enumerate(depths))
        )
        self.norm = nn.LayerNorm(dim << last, eps=EPS)
        self.head = nn.Linear(dim << last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] != self.image_size or x.shape[3] != self.image_size:
            raise ValueError(
                f"this MS-MLP takes {self.image_size}x{self.image_size} images, got {x.shape[2]}x{x.shape[3]}"
            )
        return self.head(self.norm(self.layers(self.patch_embed(x)).mean((2, 3))))


def ms_mlp_t(num_classes: int = 1000, image_size: int = 224) -> MSMLP:
    """MS-MLP-Tiny: 28.7 M parameters."""
    return MSMLP(96, (3, 3, 9, 3), image_size=image_size, num_classes=num_classes)


def ms_mlp_s(num_classes: int = 1000, image_size: int = 224) -> MSMLP:
    """MS-MLP-Small: 50.3 M parameters."""
    return MSMLP(96, (3, 3, 27, 3), image_size=image_size, num_classes=num_classes)


def ms_mlp_b(num_classes: int = 1000, image_size: int = 224) -> MSMLP:
    """MS-MLP-Base: 88.7 M parameters."""
    return MSMLP(128, (3, 3, 27, 3), image_size=image_size, num_classes=num_classes)
