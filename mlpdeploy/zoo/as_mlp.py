"""AS-MLP: an axial shifted MLP architecture for vision, Lian et al. 2021, arXiv 2107.08391.

Tokens meet because groups of channels are displaced against each other before the channels are projected. With k
groups of ceil(c / k) channels, group g = 0..k-1 moves by g - k // 2 along one axis of the grid, and zeros move in:

    s_w(x)[c, i, j] = x[c, i, j - (g(c) - k // 2)]          s_h likewise along i
    y               = conv3(norm(gelu(W_w s_w(z)) + gelu(W_h s_h(z))))  with z = gelu(norm(W_1 x))

The normalisation is a GroupNorm of one group throughout: over channels and tokens of each image. Channels come first.

The names of the parameters are those of the authors' checkpoints, which load strictly and unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    """Two 1x1 convolutions with a GELU between them; (b, dim, h, w) to the same."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def axial_shift(x: Tensor, groups: int, dim: int) -> Tensor:
    """Move each group of channels of `x` (b, c, h, w) along `dim` by its number less `groups // 2`; zeros move in."""
    reach, size = groups // 2, x.shape[dim]
    padding = (reach, reach, 0, 0) if dim == 3 else (0, 0, reach, reach)
    parts = F.pad(x, padding).chunk(groups, 1)
    # Part g starts at 2 * reach - g: its element i is that of x at i - (g - reach).
    return torch.cat([part.narrow(dim, 2 * reach - g, size) for g, part in enumerate(parts)], 1)


class AxialShift(nn.Module):
    """Mixing along both axes of the grid; (b, c, h, w) to the same."""

    def __init__(self, dim: int, shift_size: int) -> None:
        super().__init__()
        self.shift_size = shift_size
        self.conv1 = nn.Conv2d(dim, dim, 1)
        self.conv2_1 = nn.Conv2d(dim, dim, 1)
        self.conv2_2 = nn.Conv2d(dim, dim, 1)
        self.conv3 = nn.Conv2d(dim, dim, 1)
        self.norm1 = nn.GroupNorm(1, dim)
        self.norm2 = nn.GroupNorm(1, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(self.conv1(x)))
        along_w = F.gelu(self.conv2_1(axial_shift(x, self.shift_size, 3)))
        along_h = F.gelu(self.conv2_2(axial_shift(x, self.shift_size, 2)))
        return self.conv3(self.norm2(along_w + along_h))


class AxialShiftedBlock(nn.Module):
    """x + axial_shift(norm1 x), then x + mlp(norm2 x); (b, c, h, w) to the same."""

    def __init__(self, dim: int, shift_size: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(1, dim)
        self.axial_shift = AxialShift(dim, shift_size)
        self.norm2 = nn.GroupNorm(1, dim)
        self.mlp = Mlp(dim, dim * 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.axial_shift(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Patches of 2x2 tokens, normalised and projected: (b, c, h, w) to (b, 2c, h/2, w/2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(4 * dim, 2 * dim, 1, bias=False)
        self.norm = nn.GroupNorm(1, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        # Channels of the patch: column slowest, then row, then channel.
        x = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 5, 3, 1, 2, 4).reshape(b, 4 * c, h // 2, w // 2)
        return self.reduction(self.norm(x))


class Stage(nn.Module):
    """Blocks of one resolution, and the merging of patches behind them where another stage follows."""

    def __init__(self, dim: int, depth: int, shift_size: int, last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(AxialShiftedBlock(dim, shift_size) for _ in range(depth))
        self.downsample = None if last else PatchMerging(dim)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class PatchEmbed(nn.Module):
    """Patches that do not overlap, projected and normalised: (b, 3, h, w) to (b, c, h/4, w/4)."""

    def __init__(self, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, patch_size)
        self.norm = nn.GroupNorm(1, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class ASMLP(nn.Module):
    """The classifier: images (b, 3, image_size, image_size) to logits (b, num_classes).

    `depths` has one entry per stage; the grid is halved and the channels are doubled between stages. No weight depends
    on the grid. Raises ValueError where a stage's grid cannot be halved, and for images of another size.
    """

    def __init__(
        self,
        dim: int,
        depths: Sequence[int],
        shift_size: int = 5,
        patch_size: int = 4,
        image_size: int = 224,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        unit = patch_size * 2 ** (len(depths) - 1)
        if image_size < unit or image_size % unit:
            raise ValueError(f"AS-MLP halves its grid {len(depths) - 1} times: {image_size} is no multiple of {unit}")
        self.image_size = image_size
        self.patch_embed = PatchEmbed(dim, patch_size)
        last = len(depths) - 1
        stages = (Stage(dim * 2**i, depth, shift_size, i == last) for i, depth in enumerate(depths))
        self.layers = nn.ModuleList(stages)
        self.norm = nn.GroupNorm(1, dim * 2**last)
        self.head = nn.Linear(dim * 2**last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] != self.image_size or x.shape[3] != self.image_size:
            size = f"{self.image_size}x{self.image_size}"
            raise ValueError(f"this AS-MLP takes {size} images, got {x.shape[2]}x{x.shape[3]}")
        x = self.patch_embed(x)
        for stage in self.layers:
            x = stage(x)
        return self.head(self.norm(x).mean((2, 3)))


def as_mlp_t(num_classes: int = 1000, image_size: int = 224) -> ASMLP:
    """AS-MLP-Tiny: 28.3 M parameters."""
    return ASMLP(96, (2, 2, 6, 2), image_size=image_size, num_classes=num_classes)


def as_mlp_s(num_classes: int = 1000, image_size: int = 224) -> ASMLP:
    """AS-MLP-Small: 49.6 M parameters."""
    return ASMLP(96, (2, 2, 18, 2), image_size=image_size, num_classes=num_classes)


def as_mlp_b(num_classes: int = 1000, image_size: int = 224) -> ASMLP:
    """AS-MLP-Base: 87.8 M parameters."""
    return ASMLP(128, (2, 2, 18, 2), image_size=image_size, num_classes=num_classes)
