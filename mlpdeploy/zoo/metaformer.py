"""PoolFormer and the MetaFormer baselines: MetaFormer is actually what you need for vision, Yu et al. 2021,
arXiv 2111.11418.

Notation: `b` batch, `c` channels, `h w` grid. A block mixes tokens with nothing but a mean, then mixes channels; l is a
scale for each channel:

    x = x + l_1 * mix(norm_1 x)
    x = x + l_2 * fc_2(gelu(fc_1(norm_2 x)))

`mix` is the mean over the 3x3 neighbours inside the image, less the token itself (pooling); the identity; a matrix over
the tokens (spatial_fc); or self-attention with heads of 32 channels (attention). The norm is over all of `c h w`, or,
in the networks with attention, over `c` alone. Logits are those of the mean over `h w` of the normalised result: the
authors normalise before they average. The names of the parameters are those of the authors' checkpoints; `read` takes
timm's names as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

S12, S24, S36, M48 = (2, 2, 6, 2), (4, 4, 12, 4), (6, 6, 18, 6), (8, 8, 24, 8)
"""Blocks of each stage; the authors' M36 has those of S36."""
SMALL, MEDIUM = (64, 128, 320, 512), (96, 192, 384, 768)
"""Channels of each stage."""

SIZE = 224
"""Height and width of the images that the published checkpoints with position-dependent weights take."""


class GroupNorm(nn.GroupNorm):
    """Normalisation over channels and grid together; (b, c, h, w) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__(1, dim)


class LayerNormChannel(nn.Module):
    """Normalisation over the channels of each token; (b, c, h, w) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        deviation = (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        return centred / deviation * self.weight[:, None, None] + self.bias[:, None, None]


class Pooling(nn.Module):
    """Mean of the 3x3 neighbours inside the image, less the token itself; (b, c, h, w) to the same."""

    def __init__(self, dim: int, grid: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False) - x


class Same(nn.Module):
    """No mixing at all."""

    def __init__(self, dim: int, grid: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x


class SpatialFc(nn.Module):
    """One matrix over the tokens of a fixed grid; (b, c, h, w) to the same."""

    def __init__(self, dim: int, grid: int) -> None:
        super().__init__()
        self.fc = nn.Linear(grid * grid, grid * grid, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(2)).reshape(x.shape)


class Attention(nn.Module):
    """Self-attention between the tokens, heads of 32 channels; (b, c, h, w) to the same."""

    def __init__(self, dim: int, grid: int, head_dim: int = 32) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, dim * 3, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        heads = (b, h * w, 3, c // self.head_dim, self.head_dim)
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).reshape(heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((q * self.head_dim**-0.5) @ k.transpose(-2, -1)).softmax(-1)
        mixed = self.proj((weights @ v).transpose(1, 2).reshape(b, h * w, c))
        return mixed.transpose(1, 2).reshape(b, c, h, w)


Mixer = Callable[[int, int], nn.Module]
"""Makes a token mixer of (channels, height and width of the grid)."""


class Mlp(nn.Module):
    """Two 1x1 convolutions with a GELU between them; (b, c, h, w) to the same."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class MetaFormerBlock(nn.Module):
    """x + l_1 * mix(norm_1 x), then x + l_2 * mlp(norm_2 x); (b, c, h, w) to the same."""

    def __init__(self, dim: int, grid: int, mixer: Mixer, norm: type[GroupNorm] | type[LayerNormChannel]) -> None:
        super().__init__()
        self.layer_scale_1 = nn.Parameter(torch.full((dim,), 1e-5))
        self.layer_scale_2 = nn.Parameter(torch.full((dim,), 1e-5))
        self.norm1 = norm(dim)
        self.token_mixer = mixer(dim, grid)
        self.norm2 = norm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale_1[:, None, None] * self.token_mixer(self.norm1(x))
        return x + self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """A strided, padded convolution; (b, c, h, w) to (b, c', h', w')."""

    def __init__(self, in_chans: int, dim: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class AddPosition(nn.Module):
    """A learned vector for each place of a fixed grid is added; (b, c, h, w) to the same."""

    def __init__(self, dim: int, grid: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, dim, grid, grid))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pos_embed


class MetaFormer(nn.Module):
    """The classifier: images (b, in_chans, height, width) to logits (b, num_classes).

    `layers`, `dims` and `mixers` have one entry per stage: its blocks, its channels, and what mixes its tokens.
    Positions are added before the first stage with attention. Pooling and the identity take any height and width;
    with another mixer these are `image_size`. Raises ValueError where the image is smaller than the stem's kernel.
    """

    def __init__(
        self,
        layers: Sequence[int],
        dims: Sequence[int],
        mixers: Sequence[Mixer],
        norm: type[GroupNorm] | type[LayerNormChannel] = GroupNorm,
        image_size: int = SIZE,
        in_chans: int = 3,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        if image_size < 3:
            raise ValueError(f"a {image_size}x{image_size} image is smaller than the stem can take: 3x3 is the least")
        self.size = image_size if {SpatialFc, Attention} & set(mixers) else None
        self.patch_embed = PatchEmbed(in_chans, dims[0], 7, 4, 2)
        stages: list[nn.Module] = []
        for stage, (depth, dim, grid) in enumerate(zip(layers, dims, grids(image_size, len(layers)), strict=True)):
            if stage:
                stages.append(PatchEmbed(dims[stage - 1], dim, 3, 2, 1))
            if mixers[stage] is Attention and Attention not in mixers[:stage]:
                stages.append(AddPosition(dim, grid))
            stages.append(nn.Sequential(*(MetaFormerBlock(dim, grid, mixers[stage], norm) for _ in range(depth))))
        self.network = nn.ModuleList(stages)
        self.norm = norm(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if self.size is not None and tuple(x.shape[2:]) != (self.size, self.size):
            raise ValueError(f"this MetaFormer takes {self.size}x{self.size} images, got {x.shape[2]}x{x.shape[3]}")
        x = self.patch_embed(x)
        for stage in self.network:
            x = stage(x)
        return self.head(self.norm(x).mean((2, 3)))


def grids(image_size: int, stages: int) -> list[int]:
    """Height and width of the grid of each stage."""
    found = [(image_size - 3) // 4 + 1]
    while len(found) < stages:
        found.append((found[-1] + 1) // 2)
    return found


RENAMED: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"^stem\.conv\.", lambda _: "patch_embed.proj."),
    (r"^stages\.(\d+)\.blocks\.", lambda found: f"network.{2 * int(found[1])}."),
    (r"^stages\.(\d+)\.downsample\.conv\.", lambda found: f"network.{2 * int(found[1]) - 1}.proj."),
    (r"\.layer_scale(\d)\.scale$", lambda found: f".layer_scale_{found[1]}"),
    (r"^head\.norm\.", lambda _: "norm."),
    (r"^head\.fc\.", lambda _: "head."),
)
"""Keys of timm's PoolFormer, and what they are here."""


def read(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The authors' keys from timm's; the authors' stay as they are."""
    if "stem.conv.weight" not in state:
        return state, {}
    renamed = {}
    for key, tensor in state.items():
        for pattern, replacement in RENAMED:
            key = re.sub(pattern, replacement, key)
        renamed[key] = tensor
    return renamed, {}


def poolformer_s12(num_classes: int = 1000, image_size: int = SIZE) -> MetaFormer:
    """PoolFormer-S12: 11.9 M parameters, any image size."""
    return MetaFormer(S12, SMALL, (Pooling,) * 4, image_size=image_size, num_classes=num_classes)


def poolformer_s24(num_classes: int = 1000, image_size: int = SIZE) -> MetaFormer:
    """PoolFormer-S24: 21.4 M parameters, any image size."""
    return MetaFormer(S24, SMALL, (Pooling,) * 4, image_size=image_size, num_classes=num_classes)


def poolformer_s36(num_classes: int = 1000, image_size: int = SIZE) -> MetaFormer:
    """PoolFormer-S36: 30.9 M parameters, any image size."""
    return MetaFormer(S36, SMALL, (Pooling,) * 4, image_size=image_size, num_classes=num_classes)


def poolformer_m36(num_classes: int = 1000, image_size: int = SIZE) -> MetaFormer:
    """PoolFormer-M36: 56.2 M parameters, any image size."""
    return MetaFormer(S36, MEDIUM, (Pooling,) * 4, image_size=image_size, num_classes=num_classes)


def poolformer_m48(num_classes: int = 1000, image_size: int = SIZE) -> MetaFormer:
    """PoolFormer-M48: 73.5 M parameters, any image size."""
    return MetaFormer(M48, MEDIUM, (Pooling,) * 4, image_size=image_size, num_classes=num_classes)


def metaformer_id_s12(num_classes: int = 1000, image_size: int = SIZE) -> MetaFormer:
    """Tokens are not mixed, but by the convolutions between stages: 11.9 M parameters, any image size."""
    return MetaFormer(S12, SMALL, (Same,) * 4, image_size=image_size, num_classes=num_classes)


def metaformer_pppf_s12_224(num_classes: int = 1000, image_size: int = SIZE) -> MetaFormer:
    """Pooling, and a matrix over the tokens in the last stage: 11.9 M parameters."""
    return _fixed((Pooling, Pooling, Pooling, SpatialFc), GroupNorm, image_size, num_classes)


def metaformer_ppff_s12_224(num_classes: int = 1000, image_size: int = SIZE) -> MetaFormer:
    """Pooling, and matrices over the tokens in the last two stages: 12.2 M parameters."""
    return _fixed((Pooling, Pooling, SpatialFc, SpatialFc), GroupNorm, image_size, num_classes)


def metaformer_pppa_s12_224(num_classes: int = 1000, image_size: int = SIZE) -> MetaFormer:
    """Pooling, and attention in the last stage: 14.0 M parameters."""
    return _fixed((Pooling, Pooling, Pooling, Attention), LayerNormChannel, image_size, num_classes)


def metaformer_ppaa_s12_224(num_classes: int = 1000, image_size: int = SIZE) -> MetaFormer:
    """Pooling, and attention in the last two stages: 16.5 M parameters."""
    return _fixed((Pooling, Pooling, Attention, Attention), LayerNormChannel, image_size, num_classes)


def _fixed(
    mixers: Sequence[Mixer], norm: type[GroupNorm] | type[LayerNormChannel], image_size: int, num_classes: int
) -> MetaFormer:
    if image_size != SIZE:
        raise ValueError(f"its weights depend on the position: {image_size} was asked for, only {SIZE} fits")
    return MetaFormer(S12, SMALL, mixers, norm, image_size, num_classes=num_classes)
