"""SwinCheX: a Swin Transformer with one small MLP per finding on chest X-rays, Taslimi et al. 2022, arXiv 2206.04246.

Notation: `b` batch, `h w` token grid, `c` channels, split as `c = (n d)` into `n` heads of `d` channels. Attention
stays inside windows of `s` by `s` tokens, `h = (a i)` and `w = (e j)`; with t = (i j), and a bias per head that depends
on the distance of the two tokens only:

    y[b,a,e,n,t] = sum over u of softmax over u of (q[b,a,e,n,t] . k[b,a,e,n,u] / sqrt(d) + bias[n,t,u]) v[b,a,e,n,u]

In every second block the grid is first rolled by `s//2` towards its beginning, and back afterwards; tokens of a window
that were not neighbours before have 100 subtracted from their logit. Finding k of `findings` is present with
probability `softmax(y[k])[:, 1]`. The names of the parameters are those of the authors' checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpdeploy.zoo.swin import CACHES
from mlpdeploy.zoo.swin_mlp import Mlp, PatchEmbed, PatchMerging, grids

HEADS = {0: (), 1: (48,), 2: (384, 48), 3: (384, 48, 48)}
"""Hidden sizes of a finding's MLP, by the authors' `num_mlp_heads`."""

SEPARATED = -100.0
"""What the logit of two tokens gets that the roll made neighbours."""


def read(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The authors' keys without the constants that they keep as buffers, and the number of findings."""
    findings = sum(re.fullmatch(r"heads\.\d+\.weight", key) is not None for key in state)
    kept = {key: tensor for key, tensor in state.items() if not key.endswith(CACHES)}
    return kept, {"num_classes": findings} if findings else {}


class WindowAttention(nn.Module):
    """Attention inside windows of a grid that they cover; (b, h, w, c) to the same.

    `mask` (windows, 1, s*s, s*s) is added to the logits of each window, None adds nothing.
    """

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(0.02 * torch.randn((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", distances(window), persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        b, h, w, c = x.shape
        n, s = self.heads, self.window
        a, e, d = h // s, w // s, c // n
        windows = self.qkv(x).reshape(b, a, s, e, s, 3, n, d).permute(5, 0, 1, 3, 6, 2, 4, 7)
        q, k, v = windows.reshape(3, b, a * e, n, s * s, d).unbind(0)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        logits = (q * d**-0.5) @ k.transpose(-2, -1) + (bias if mask is None else bias + mask)
        y = (logits.softmax(-1) @ v).reshape(b, a, e, n, s, s, d).permute(0, 1, 4, 2, 5, 3, 6)
        return self.proj(y.reshape(b, h, w, c))


class SwinBlock(nn.Module):
    """x + attn(norm1 x) in windows that are displaced by `shift`, then x + mlp(norm2 x); (b, h, w, c) to the same."""

    def __init__(self, dim: int, grid: int, heads: int, window: int, shift: int, mlp_ratio: int) -> None:
        super().__init__()
        self.shift = shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, dim * mlp_ratio)
        self.register_buffer("attn_mask", separation(grid, window, shift) if shift else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
            y = torch.roll(self.attn(y, self.attn_mask), (self.shift, self.shift), (1, 2))
        else:
            y = self.attn(y, None)
        x = x + y
        return x + self.mlp(self.norm2(x))


class Stage(nn.Module):
    """Blocks on one grid, every second one with displaced windows, and a merging of patches after all but the last."""

    def __init__(self, dim: int, grid: int, depth: int, heads: int, window: int, mlp_ratio: int, merge: bool) -> None:
        super().__init__()
        shift = window // 2 if grid > window else 0
        window = min(grid, window)
        blocks = (SwinBlock(dim, grid, heads, window, index % 2 * shift, mlp_ratio) for index in range(depth))
        self.blocks = nn.ModuleList(blocks)
        self.downsample = PatchMerging(dim) if merge else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class SwinCheX(nn.Module):
    """Images (b, in_chans, image_size, image_size) to a list of `num_classes` tensors (b, 2): absent, present.

    `depths` and `heads` have one entry per stage; `hidden` are the hidden sizes of each finding's MLP. Raises
    ValueError where a stage's grid cannot be cut into windows, or its channels into heads.
    """

    def __init__(
        self,
        dim: int,
        depths: Sequence[int],
        heads: Sequence[int],
        hidden: Sequence[int],
        window: int = 7,
        patch_size: int = 4,
        mlp_ratio: int = 4,
        image_size: int = 224,
        in_chans: int = 3,
        num_classes: int = 14,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.patch_embed = PatchEmbed(in_chans, dim, patch_size)
        stages: list[nn.Module] = []
        for stage, grid in enumerate(grids(image_size, patch_size, window, len(depths))):
            if (width := dim << stage) % heads[stage]:
                raise ValueError(f"stage {stage}: {width} channels do not split into {heads[stage]} heads")
            merge = stage < len(depths) - 1
            stages.append(Stage(width, grid, depths[stage], heads[stage], window, mlp_ratio, merge))
        self.layers = nn.Sequential(*stages)
        features = dim << len(depths) - 1
        self.norm = nn.LayerNorm(features)
        sizes = (features, *hidden, 2)
        self.names = ["heads", *(f"heads{index}" for index in range(2, len(sizes)))]
        for name, before, after in zip(self.names, sizes[:-1], sizes[1:], strict=True):
            self.add_module(name, nn.ModuleList(nn.Linear(before, after) for _ in range(num_classes)))

    def forward(self, x: Tensor) -> list[Tensor]:
        if x.shape[2] != self.image_size or x.shape[3] != self.image_size:
            size = self.image_size
            raise ValueError(f"this SwinCheX takes {size}x{size} images, got {x.shape[2]}x{x.shape[3]}")
        x = self.norm(self.layers(self.patch_embed(x))).mean((1, 2))
        return [self.finding(x, layers) for layers in zip(*(getattr(self, name) for name in self.names), strict=True)]

    @staticmethod
    def finding(x: Tensor, layers: Sequence[nn.Module]) -> Tensor:
        """One finding's MLP, with ReLU between its layers; (b, features) to (b, 2)."""
        for layer in layers[:-1]:
            x = F.relu(layer(x))
        return layers[-1](x)


def distances(window: int) -> Tensor:
    """Of each two tokens of a window, the row of the bias table for their distance; (s*s, s*s)."""
    along = torch.arange(window)
    offset = along[:, None] - along[None, :] + window - 1
    rows = offset[:, None, :, None] * (2 * window - 1) + offset[None, :, None, :]
    return rows.reshape(window * window, window * window)


def separation(grid: int, window: int, shift: int) -> Tensor:
    """What the windows of a rolled grid add to the logits of each two tokens; (windows, 1, s*s, s*s)."""
    place = torch.arange(grid)
    part = (place >= grid - window).int() + (place >= grid - shift).int()
    count = grid // window
    parts = (part[:, None] * 3 + part[None, :]).reshape(count, window, count, window).transpose(1, 2)
    parts = parts.reshape(count * count, 1, window * window)
    return (parts[..., :, None] != parts[..., None, :]).float() * SEPARATED


def _swinchex_t(layers: int, num_classes: int, image_size: int) -> SwinCheX:
    heads = (3, 6, 12, 24)
    return SwinCheX(96, (2, 2, 6, 2), heads, HEADS[layers], image_size=image_size, num_classes=num_classes)


def _swinchex_l(layers: int, num_classes: int, image_size: int) -> SwinCheX:
    heads = (6, 12, 24, 48)
    return SwinCheX(192, (2, 2, 18, 2), heads, HEADS[layers], image_size=image_size, num_classes=num_classes)


def swinchex_t_head0(num_classes: int = 14, image_size: int = 224) -> SwinCheX:
    """Swin-T with one linear layer per finding: 27.5 M parameters."""
    return _swinchex_t(0, num_classes, image_size)


def swinchex_t_head1(num_classes: int = 14, image_size: int = 224) -> SwinCheX:
    """Swin-T with two linear layers per finding: 28.0 M parameters."""
    return _swinchex_t(1, num_classes, image_size)


def swinchex_t_head2(num_classes: int = 14, image_size: int = 224) -> SwinCheX:
    """Swin-T with three linear layers per finding: 31.9 M parameters."""
    return _swinchex_t(2, num_classes, image_size)


def swinchex_t_head3(num_classes: int = 14, image_size: int = 224) -> SwinCheX:
    """Swin-T with four linear layers per finding: 31.9 M parameters."""
    return _swinchex_t(3, num_classes, image_size)


def swinchex_l_head0(num_classes: int = 14, image_size: int = 224) -> SwinCheX:
    """Swin-L with one linear layer per finding: 195.0 M parameters."""
    return _swinchex_l(0, num_classes, image_size)


def swinchex_l_head1(num_classes: int = 14, image_size: int = 224) -> SwinCheX:
    """Swin-L with two linear layers per finding: 196.0 M parameters."""
    return _swinchex_l(1, num_classes, image_size)


def swinchex_l_head2(num_classes: int = 14, image_size: int = 224) -> SwinCheX:
    """Swin-L with three linear layers per finding: 203.5 M parameters."""
    return _swinchex_l(2, num_classes, image_size)


def swinchex_l_head3(num_classes: int = 14, image_size: int = 224) -> SwinCheX:
    """Swin-L with four linear layers per finding, the published network: 203.6 M parameters."""
    return _swinchex_l(3, num_classes, image_size)
