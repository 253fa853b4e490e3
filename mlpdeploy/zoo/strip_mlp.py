"""Strip-MLP: efficient token interaction for vision MLP, Cao et al. 2023, arXiv 2307.11458.

Notation: `b` batch, `h w` token grid of `n` by `n`, channels of the strip layer `(p c)` in `p` groups that share
weights. The strip layer gathers a whole row, with its two neighbouring rows, then a whole column, cascaded:

    y[b,p,c,h,v]  = sum over k in -1..1, over w, of R[c,v,w,k] (x + pos_h)[b,p,c,h+k,w]      zero outside the grid
    x_h           = gelu(BN(fuse_h [y, x])) + pos_w
    z[b,p,c,v,w]  = sum over k in -1..1, over h, of C[c,v,h,k] x_h[b,p,c,h,w+k]
    strip(x)      = fuse_w [x, z]

One half of the channels goes through it, the other through two depthwise convolutions and split attention. It is
written as the paper describes it, with permutations: removing them is the compiler's work. The names of the parameters
are those of the authors' checkpoints, which therefore load strictly and unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = 4
PATCH = 4
SMALLEST = PATCH << (STAGES - 1)
"""Side of the smallest image: one token in the last stage."""


class RelativePosition(nn.Module):
    """A vector per pair (h, w), chosen by w - h, as a map (1, channels, n, n)."""

    index: Tensor

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        # Rows 0 and 2n are never read: distances are less than n.
        self.embeddings_table = nn.Parameter(torch.randn(2 * size + 1, channels) * 0.02)
        places = torch.arange(size)
        self.register_buffer("index", places - places[:, None] + size, persistent=False)

    def forward(self) -> Tensor:
        return self.embeddings_table[self.index].permute(2, 0, 1).unsqueeze(0)


class Reweight(nn.Module):
    """Two 1x1 convolutions with a GELU between them, (b, dim, 1, 1) to (b, 3 dim, 1, 1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, dim // 2, 1)
        self.fc2 = nn.Conv2d(dim // 2, dim * 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class StripBlock(nn.Module):
    """A 1x1 layer, then strips on one half of the channels and local mixing on the other; (b, c, n, n) to the same."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        half = channels // 2
        self.groups = 2 if channels % 80 == 0 else 4
        self.width = half // self.groups
        strip = self.width * size
        self.mlp = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.GELU())
        self.relate_pos_h = RelativePosition(half, size)
        self.relate_pos_w = RelativePosition(half, size)
        self.proj_h = nn.Conv2d(strip, strip, (1, 3), padding=(0, 1), groups=self.width)
        self.proj_w = nn.Conv2d(strip, strip, (1, 3), padding=(0, 1), groups=self.width)
        self.fuse_h = nn.Conv2d(channels, half, 1, bias=False)
        self.fuse_w = nn.Conv2d(channels, half, 1, bias=False)
        self.BN = nn.BatchNorm2d(half)
        self.fc_h = nn.Conv2d(half, half, (3, 7), padding=(1, 3), groups=half, bias=False)
        self.fc_w = nn.Conv2d(half, half, (7, 3), padding=(3, 1), groups=half, bias=False)
        self.reweight = Reweight(half)
        self.fuse = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mlp(x)
        half = x.shape[1] // 2
        return self.fuse(torch.cat([self.strips(x[:, :half]), self.local(x[:, half:])], 1))

    def strips(self, x: Tensor) -> Tensor:
        b, half, h, w = x.shape
        p, c = self.groups, self.width

        rows = (x + self.relate_pos_h()).reshape(b, p, c, h, w).permute(0, 2, 4, 1, 3).reshape(b, c * w, p, h)
        rows = self.proj_h(rows).reshape(b, c, w, p, h).permute(0, 3, 1, 4, 2).reshape(b, half, h, w)
        x_h = F.gelu(self.BN(self.fuse_h(torch.cat([rows, x], 1)))) + self.relate_pos_w()

        columns = x_h.reshape(b, p, c * h, w).permute(0, 2, 1, 3)
        columns = self.proj_w(columns).permute(0, 2, 1, 3).reshape(b, half, h, w)
        return self.fuse_w(torch.cat([x, columns], 1))

    def local(self, x: Tensor) -> Tensor:
        wide, high = self.fc_h(x), self.fc_w(x)
        pooled = F.adaptive_avg_pool2d(high + wide + x, 1)
        # The branch is the fastest axis of the 3c outputs of fc2: row 3*channel + branch.
        shares = self.reweight(pooled).reshape(x.shape[0], x.shape[1], 3).permute(2, 0, 1).softmax(0)
        shares = shares.unsqueeze(-1).unsqueeze(-1)
        return high * shares[0] + wide * shares[1] + x * shares[2]


class TokenMixing(nn.Module):
    """BatchNorm, GELU and a depthwise convolution, then the strip block; (b, c, n, n) to the same."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.dwsc = nn.ModuleDict({"conv_merge": BatchNormActConv(channels)})
        self.smlp_block = StripBlock(channels, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.smlp_block(self.dwsc["conv_merge"](x))


class BatchNormActConv(nn.Module):
    """conv3x3(gelu(BN(x))), depthwise; (b, c, h, w) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.BN = nn.BatchNorm2d(channels)
        self.Conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.Conv(F.gelu(self.BN(x)))


class GlobalResponseNorm(nn.Module):
    """x + gamma x N + beta, where N is a channel's norm over the grid, over its mean; (b, h, w, c) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        # A sum that the precision plan can see: in FP16 it may overflow where its root does not.
        norm = x.square().sum((1, 2), keepdim=True).sqrt()
        share = norm / (norm.mean(-1, keepdim=True) + 1e-6)
        return self.gamma * (x * share) + self.beta + x


class ChannelMixing(nn.Module):
    """A depthwise 7x7 convolution, LayerNorm, and an MLP with global response normalisation; (b, c, h, w) to same."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.conv_77 = nn.Conv2d(channels, channels, 7, padding=3, groups=channels, bias=False)
        self.layer_norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, ratio * channels)
        self.grn = GlobalResponseNorm(ratio * channels)
        self.fc2 = nn.Linear(ratio * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer_norm(self.conv_77(x).permute(0, 2, 3, 1))
        return self.fc2(self.grn(F.gelu(self.fc1(x)))).permute(0, 3, 1, 2)


class Block(nn.Module):
    """x + token_mixing(x), then x + channel_mixing(x); (b, c, n, n) to the same."""

    def __init__(self, channels: int, size: int, ratio: int) -> None:
        super().__init__()
        self.token_mixing = TokenMixing(channels, size)
        self.channel_mixing = ChannelMixing(channels, ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mixing(x)
        return x + self.channel_mixing(x)


class StripMLP(nn.Module):
    """The classifier: images (b, in_chans, image_size, image_size) to logits (b, num_classes).

    `layers` has the number of blocks of each of the four stages, whose channels are `dim` times 1, 2, 4 and 8. Raises
    ValueError where these do not fit, and for images that leave the last stage without a token.
    """

    def __init__(
        self,
        dim: int,
        layers: Sequence[int],
        ratio: int = 3,
        image_size: int = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        if len(layers) != STAGES:
            raise ValueError(f"Strip-MLP has {STAGES} stages, got {len(layers)} numbers of blocks")
        if dim % 8:
            raise ValueError(f"Strip-MLP splits half of its channels into groups: {dim} is not a multiple of 8")
        if image_size < SMALLEST:
            raise ValueError(f"Strip-MLP needs images of at least {SMALLEST}x{SMALLEST}, got {image_size}")
        self.image_size = image_size
        self.patch_embed = nn.Conv2d(in_chans, dim, PATCH, PATCH, bias=False)
        dims = [dim << stage for stage in range(STAGES)]
        for stage, (depth, channels) in enumerate(zip(layers, dims, strict=True)):
            size = image_size // PATCH >> stage
            blocks = nn.ModuleList(Block(channels, size, ratio) for _ in range(depth))
            self.add_module(f"blocks{stage + 1}", blocks)
        self.merging1, self.merging2, self.merging3 = (
            nn.Conv2d(channels, channels * 2, 2, 2, bias=False) for channels in dims[:-1]
        )
        self.conv_s1_28 = _halving(dims[1])
        self.conv_s1_14 = _halving(dims[2])
        self.conv_s2_14 = _halving(dims[2])
        self.norm = nn.BatchNorm2d(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] != self.image_size or x.shape[3] != self.image_size:
            raise ValueError(
                f"this Strip-MLP takes {self.image_size}x{self.image_size} images, got {x.shape[2]}x{x.shape[3]}"
            )
        x = self.merging1(_through(self.blocks1, self.patch_embed(x)))
        first = self.conv_s1_28(x)
        x = self.merging2(_through(self.blocks2, x))
        second = self.conv_s1_14(first) + self.conv_s2_14(x)
        x = self.merging3(_through(self.blocks3, x + first))
        x = _through(self.blocks4, x + second)
        return self.head(self.norm(x).mean((2, 3)))


def _halving(channels: int) -> nn.Conv2d:
    """A skip to the next stage: two maps of half the size for each one."""
    return nn.Conv2d(channels, channels * 2, 2, 2, groups=channels, bias=False)


def _through(blocks: Any, x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


def strip_mlp_t_light(num_classes: int = 1000, image_size: int = 224) -> StripMLP:
    """Strip-MLP-T*: 18.2 M parameters."""
    return StripMLP(80, (2, 2, 6, 2), image_size=image_size, num_classes=num_classes)


def strip_mlp_t(num_classes: int = 1000, image_size: int = 224) -> StripMLP:
    """Strip-MLP-T: 24.9 M parameters."""
    return StripMLP(80, (2, 2, 12, 2), image_size=image_size, num_classes=num_classes)


def strip_mlp_s(num_classes: int = 1000, image_size: int = 224) -> StripMLP:
    """Strip-MLP-S: 42.6 M parameters."""
    return StripMLP(96, (2, 2, 18, 2), image_size=image_size, num_classes=num_classes)


def strip_mlp_b(num_classes: int = 1000, image_size: int = 224) -> StripMLP:
    """Strip-MLP-B: 57.2 M parameters."""
    return StripMLP(112, (2, 2, 18, 2), image_size=image_size, num_classes=num_classes)
