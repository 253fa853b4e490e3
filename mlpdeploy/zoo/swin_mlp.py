"""Swin-MLP: Swin Transformer's stages with spatial MLPs in place of attention, Liu et al. 2021, arXiv 2103.14030.

Notation: `b` batch, `h w` token grid, `c` channels, split as `c = (n d)` into `n` heads of `d` channels. The grid is
cut into windows of `s` by `s` tokens, `h = (a i)` and `w = (e j)`; each head mixes every window by the same matrix:

    y[b,a,e,p,q,n,d] = sum over i,j of W[n,p,q,i,j] x[b,a,e,i,j,n,d] + bias[n,p,q]

In every second block the grid is first padded with zeros, by `s - s//2` in front and `s//2` behind along both axes, so
that its windows straddle those of the block before; it is cropped afterwards. Nothing is rolled or masked.

The names of the parameters are those of the authors' checkpoints, which therefore load strictly and unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, on the last axis."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinMLPBlock(nn.Module):
    """x + crop(mix(pad(norm1 x))), then x + mlp(norm2 x); (b, h, w, c) to the same.

    `window` is the side of a window; `shift` the number of tokens by which windows are displaced, 0 for none.
    """

    def __init__(self, dim: int, heads: int, window: int, shift: int, mlp_ratio: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.norm1 = nn.LayerNorm(dim)
        tokens = heads * window * window
        self.spatial_mlp = nn.Conv1d(tokens, tokens, kernel_size=1, groups=heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, dim * mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[1:3]
        y = self.norm1(x)
        if self.shift:
            front = self.window - self.shift
            y = F.pad(y, (0, 0, front, self.shift, front, self.shift))
            y = self.mix(y)[:, front : front + h, front : front + w]
        else:
            y = self.mix(y)
        x = x + y
        return x + self.mlp(self.norm2(x))

    def mix(self, x: Tensor) -> Tensor:
        """The spatial MLP in every window of a grid that they cover; (b, h, w, c) to the same."""
        b, h, w, c = x.shape
        n, s = self.heads, self.window
        windows = x.reshape(b, h // s, s, w // s, s, n, c // n).permute(0, 1, 3, 5, 2, 4, 6)
        mixed = self.spatial_mlp(windows.reshape(b * (h // s) * (w // s), n * s * s, c // n))
        mixed = mixed.reshape(b, h // s, w // s, n, s, s, c // n).permute(0, 1, 4, 2, 5, 3, 6)
        return mixed.reshape(b, h, w, c)


class PatchMerging(nn.Module):
    """Every 2 by 2 tokens become one of twice the channels; (b, h, w, c) to (b, h/2, w/2, 2c)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        # The column is the slowest of the three axes that become the 4c channels, then the row.
        merged = x.reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5).reshape(b, h // 2, w // 2, 4 * c)
        return self.reduction(self.norm(merged))


class Stage(nn.Module):
    """Blocks on one grid, every second one with displaced windows, and a merging of patches after all but the last."""

    def __init__(self, dim: int, grid: int, depth: int, heads: int, window: int, mlp_ratio: int, merge: bool) -> None:
        super().__init__()
        shift = window // 2 if grid > window else 0
        window = min(grid, window)
        blocks = (SwinMLPBlock(dim, heads, window, index % 2 * shift, mlp_ratio) for index in range(depth))
        self.blocks = nn.ModuleList(blocks)
        self.downsample = PatchMerging(dim) if merge else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class PatchEmbed(nn.Module):
    """A strided convolution and a LayerNorm, from an image (b, c, h, w) to a grid of tokens (b, h', w', c')."""

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class SwinMLP(nn.Module):
    """The classifier: images (b, in_chans, image_size, image_size) to logits (b, num_classes).

    `depths` and `heads` have one entry per stage; `dim` channels are doubled, and the grid halved, after each stage but
    the last. Raises ValueError where a stage's grid cannot be cut into windows, or its channels into heads.
    """

    def __init__(
        self,
        dim: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: int,
        patch_size: int = 4,
        mlp_ratio: int = 4,
        image_size: int = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        if len(depths) != len(heads):
            raise ValueError("depths and heads need one entry per stage each")
        self.image_size = image_size
        self.patch_embed = PatchEmbed(in_chans, dim, patch_size)
        stages: list[nn.Module] = []
        for stage, (grid, depth) in enumerate(
            zip(grids(image_size, patch_size, window, len(depths)), depths, strict=True)
        ):
            if (width := dim << stage) % heads[stage]:
                raise ValueError(f"stage {stage}: {width} channels do not split into {heads[stage]} heads")
            merge = stage < len(depths) - 1
            stages.append(Stage(width, grid, depth, heads[stage], window, mlp_ratio, merge))
        self.layers = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(dim << len(depths) - 1)
        self.head = nn.Linear(dim << len(depths) - 1, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] != self.image_size or x.shape[3] != self.image_size:
            size = self.image_size
            raise ValueError(f"this Swin-MLP takes {size}x{size} images, got {x.shape[2]}x{x.shape[3]}")
        x = self.layers(self.patch_embed(x))
        return self.head(self.norm(x).mean((1, 2)))


def grids(image_size: int, patch_size: int, window: int, stages: int) -> list[int]:
    """The side of the token grid in each stage.

    Raises ValueError where the image is not covered by patches, a grid is neither covered by windows nor inside one, or
    a grid that has to be halved is odd.
    """
    if image_size % patch_size:
        raise ValueError(f"images of {image_size} pixels do not split into patches of {patch_size}")
    found = [image_size // patch_size]
    for stage in range(stages):
        if found[stage] > window and found[stage] % window:
            side = found[stage]
            raise ValueError(
                f"image size {image_size} gives a {side}x{side} grid in stage {stage}, "
                f"which windows of {window}x{window} do not cover; multiples of {patch_size * window << stages - 1} fit"
            )
        if stage < stages - 1:
            if found[stage] % 2:
                raise ValueError(f"image size {image_size} gives an odd grid in stage {stage}, which cannot be halved")
            found.append(found[stage] // 2)
    return found


def swin_mlp_t_c24(num_classes: int = 1000, image_size: int = 256) -> SwinMLP:
    """Swin-MLP-T with heads of 24 channels: 20.4 M parameters, windows of 8x8."""
    return SwinMLP(96, (2, 2, 6, 2), (4, 8, 16, 32), 8, image_size=image_size, num_classes=num_classes)


def swin_mlp_t_c12(num_classes: int = 1000, image_size: int = 256) -> SwinMLP:
    """Swin-MLP-T with heads of 12 channels: 21.2 M parameters, windows of 8x8."""
    return SwinMLP(96, (2, 2, 6, 2), (8, 16, 32, 64), 8, image_size=image_size, num_classes=num_classes)


def swin_mlp_t_c6(num_classes: int = 1000, image_size: int = 256) -> SwinMLP:
    """Swin-MLP-T with heads of 6 channels: 22.7 M parameters, windows of 8x8."""
    return SwinMLP(96, (2, 2, 6, 2), (16, 32, 64, 128), 8, image_size=image_size, num_classes=num_classes)


def swin_mlp_b(num_classes: int = 1000, image_size: int = 224) -> SwinMLP:
    """Swin-MLP-B: 60.7 M parameters, windows of 7x7."""
    return SwinMLP(128, (2, 2, 18, 2), (4, 8, 16, 32), 7, image_size=image_size, num_classes=num_classes)
