"""CSWin Transformer: attention in cross-shaped windows, Dong et al. 2021, arXiv 2107.00652.

Notation: `b` batch, `h w` token grid, `c` channels. Half of the channels attend in vertical stripes (all of the height,
`s` columns), half in horizontal ones (`s` rows, all of the width). In each half, `c/2 = (n d)` for `n` heads of `d`
channels; for a stripe of tokens t = (i j), with the locally enhanced positional encoding LePE:

    y[n,t] = sum over u of softmax over u of (q[n,t] . k[n,u] / sqrt(d)) v[n,u]  +  LePE(v)[n,t]

LePE is a depthwise 3x3 convolution of the stripe's own grid, zero beyond it. Where a stripe would be the whole grid,
and in the last stage, all channels attend in one window. The names of the parameters are those of the authors'
checkpoints, which therefore load strictly and unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from mlpdeploy.zoo.swin_mlp import Mlp

STAGES = 4
LAST = STAGES - 1


class LePEAttention(nn.Module):
    """Attention inside stripes of `rows` by `columns` tokens; (b, h, w, 3, c), the 3 being q, k, v, to (b, h, w, c)."""

    def __init__(self, dim: int, heads: int, rows: int, columns: int) -> None:
        super().__init__()
        self.heads, self.rows, self.columns = heads, rows, columns
        self.get_v = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)

    def forward(self, qkv: Tensor) -> Tensor:
        b, h, w, _, c = qkv.shape
        r, s, n = self.rows, self.columns, self.heads
        a, e, d = h // r, w // s, c // n
        stripes = qkv.reshape(b, a, r, e, s, 3, n, d).permute(5, 0, 1, 3, 6, 2, 4, 7)
        q, k, v = stripes.reshape(3, b * a * e, n, r * s, d).unbind(0)
        y = ((q * d**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        lepe = self.get_v(v.transpose(-2, -1).reshape(b * a * e, c, r, s))
        y = y + lepe.reshape(b * a * e, n, d, r * s).transpose(-2, -1)
        return y.reshape(b, a, e, n, r, s, d).permute(0, 1, 4, 2, 5, 3, 6).reshape(b, h, w, c)


class CSWinBlock(nn.Module):
    """x + proj(attention in stripes of norm1 x), then x + mlp(norm2 x); (b, h, w, c) to the same, with h = w = grid."""

    def __init__(self, dim: int, grid: int, heads: int, stripe: int, mlp_ratio: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.norm1 = nn.LayerNorm(dim)
        self.proj = nn.Linear(dim, dim)
        shapes = [(grid, grid)] if stripe == grid else [(grid, stripe), (stripe, grid)]
        count = len(shapes)
        self.attns = nn.ModuleList(LePEAttention(dim // count, heads // count, *shape) for shape in shapes)
        self.mlp = Mlp(dim, dim * mlp_ratio)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        count = len(self.attns)
        parts = self.qkv(self.norm1(x)).reshape(b, h, w, 3, count, c // count).unbind(4)
        x = x + self.proj(torch.cat([attend(part) for attend, part in zip(self.attns, parts, strict=True)], -1))
        return x + self.mlp(self.norm2(x))


class MergeBlock(nn.Module):
    """A strided 3x3 convolution and a LayerNorm, from (b, h, w, c) to (b, h/2, w/2, c')."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out, kernel_size=3, stride=2, padding=1)
        self.norm = nn.LayerNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class ChannelsLast(nn.Module):
    """(b, c, h, w) to (b, h, w, c)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class CSWinTransformer(nn.Module):
    """The classifier: images (b, in_chans, image_size, image_size) to logits (b, num_classes).

    `depths`, `heads` and `stripes` have one entry for each of the four stages; `dim` channels are doubled, and the grid
    halved, between them. Raises ValueError where a stage's grid cannot be cut into its stripes.
    """

    def __init__(
        self,
        dim: int,
        depths: Sequence[int],
        heads: Sequence[int],
        stripes: Sequence[int],
        mlp_ratio: int = 4,
        image_size: int = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        _check(dim, depths, heads, stripes, image_size)
        self.image_size = image_size
        stem = nn.Conv2d(in_chans, dim, kernel_size=7, stride=4, padding=2)
        self.stage1_conv_embed = nn.Sequential(stem, ChannelsLast(), nn.LayerNorm(dim))
        for stage in range(STAGES):
            width, grid = dim << stage, image_size // 4 >> stage
            stripe = grid if stage == LAST else stripes[stage]
            if stage > 0:
                self.add_module(f"merge{stage}", MergeBlock(width // 2, width))
            blocks = (CSWinBlock(width, grid, heads[stage], stripe, mlp_ratio) for _ in range(depths[stage]))
            self.add_module(f"stage{stage + 1}", nn.ModuleList(blocks))
        self.norm = nn.LayerNorm(dim << LAST)
        self.head = nn.Linear(dim << LAST, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] != self.image_size or x.shape[3] != self.image_size:
            size = self.image_size
            raise ValueError(f"this CSWin takes {size}x{size} images, got {x.shape[2]}x{x.shape[3]}")
        x = self.stage1_conv_embed(x)
        for stage in range(STAGES):
            if stage > 0:
                x = getattr(self, f"merge{stage}")(x)
            blocks: Iterable[nn.Module] = getattr(self, f"stage{stage + 1}")
            for block in blocks:
                x = block(x)
        return self.head(self.norm(x).mean((1, 2)))


def _check(dim: int, depths: Sequence[int], heads: Sequence[int], stripes: Sequence[int], image_size: int) -> None:
    if not len(depths) == len(heads) == len(stripes) == STAGES:
        raise ValueError("depths, heads and stripes need one entry for each of the four stages")
    if image_size % (4 << LAST):
        raise ValueError(f"CSWin halves its grid three times: image size {image_size} is no multiple of {4 << LAST}")
    for stage in range(LAST):
        grid, width = image_size // 4 >> stage, dim << stage
        if grid % stripes[stage]:
            raise ValueError(
                f"image size {image_size} gives a {grid}x{grid} grid in stage {stage}, "
                f"which stripes of {stripes[stage]} do not cover"
            )
        if heads[stage] % 2 or width % heads[stage]:
            raise ValueError(
                f"stage {stage}: {width} channels do not split into two halves of {heads[stage]} heads in all"
            )


def cswin_t(num_classes: int = 1000, image_size: int = 224) -> CSWinTransformer:
    """CSWin-T: 22.3 M parameters."""
    stripes = (1, 2, 7, 7)
    return CSWinTransformer(64, (1, 2, 21, 1), (2, 4, 8, 16), stripes, image_size=image_size, num_classes=num_classes)


def cswin_s(num_classes: int = 1000, image_size: int = 224) -> CSWinTransformer:
    """CSWin-S: 34.6 M parameters."""
    stripes = (1, 2, 7, 7)
    return CSWinTransformer(64, (2, 4, 32, 2), (2, 4, 8, 16), stripes, image_size=image_size, num_classes=num_classes)


def _cswin_b(stripes: Sequence[int], num_classes: int, image_size: int) -> CSWinTransformer:
    return CSWinTransformer(96, (2, 4, 32, 2), (4, 8, 16, 32), stripes, image_size=image_size, num_classes=num_classes)


def _cswin_l(stripes: Sequence[int], num_classes: int, image_size: int) -> CSWinTransformer:
    return CSWinTransformer(
        144, (2, 4, 32, 2), (6, 12, 24, 24), stripes, image_size=image_size, num_classes=num_classes
    )


def cswin_b(num_classes: int = 1000, image_size: int = 224) -> CSWinTransformer:
    """CSWin-B: 77.4 M parameters."""
    return _cswin_b((1, 2, 7, 7), num_classes, image_size)


def cswin_l(num_classes: int = 1000, image_size: int = 224) -> CSWinTransformer:
    """CSWin-L: 173.3 M parameters."""
    return _cswin_l((1, 2, 7, 7), num_classes, image_size)


def cswin_b_384(num_classes: int = 1000, image_size: int = 384) -> CSWinTransformer:
    """CSWin-B for images of 384 pixels, with wider stripes: 77.4 M parameters."""
    return _cswin_b((1, 2, 12, 12), num_classes, image_size)


def cswin_l_384(num_classes: int = 1000, image_size: int = 384) -> CSWinTransformer:
    """CSWin-L for images of 384 pixels, with wider stripes: 173.3 M parameters."""
    return _cswin_l((1, 2, 12, 12), num_classes, image_size)
