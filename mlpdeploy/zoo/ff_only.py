"""FF-only: do you even need attention? A stack of feed-forward layers does surprisingly well on ImageNet.

Source: Melas-Kyriazi 2021, arXiv 2105.02723. `b` batch, `t` tokens (a class token first), `c` channels. A block mixes
the channels first, then the tokens, each with a residual MLP behind a norm over the axis that it mixes:

    x += fc2(gelu(fc1(norm_c(x))))            over c, for each token
    x += fc2'(gelu(fc1'(norm_t(x))))          over t, for each channel

The class token is mixed like the others, and its channels alone are classified. The names of the parameters are those
of the authors' checkpoints, which therefore load strictly and unchanged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TRAINED = 224
"""The image size whose number of tokens the mixing matrices have, whatever the patch size."""
EPSILON = 1e-6


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, on the last axis."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, hidden)
        self.fc2 = nn.Linear(hidden, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Channels, then tokens; (b, t, c) to the same."""

    def __init__(self, dim: int, tokens: int) -> None:
        super().__init__()
        self.mlp1 = Mlp(dim, 4 * dim)
        self.norm1 = nn.LayerNorm(dim, EPSILON)
        self.mlp2 = Mlp(tokens, 4 * tokens)
        self.norm2 = nn.LayerNorm(tokens, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp1(self.norm1(x))
        x = x.transpose(1, 2)
        x = x + self.mlp2(self.norm2(x))
        return x.transpose(1, 2)


class PatchEmbed(nn.Module):
    """A strided convolution from an image (b, c, h, w) to a grid of tokens (b, c', h', w')."""

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class PositionEncoding(nn.Module):
    """What is added to the tokens, (1, 1 + grid * grid, c): learned on one square grid, bilinear on another."""

    def __init__(self, dim: int, learned: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.pos_embed = nn.Parameter(torch.zeros(1, dim, learned, learned))
        self.cls_pos_embed = nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self) -> Tensor:
        embedding: Tensor = self.pos_embed
        if embedding.shape[2] != self.grid:
            embedding = F.interpolate(embedding, (self.grid, self.grid), mode="bilinear", align_corners=False)
        return torch.cat([self.cls_pos_embed, embedding.flatten(2).transpose(1, 2)], 1)


class FFOnly(nn.Module):
    """The classifier: images (b, in_chans, image_size, image_size) to logits (b, num_classes).

    `learned`: height and width of the grid on which the position encoding was learned. Raises ValueError for an image
    size with another number of patches than `TRAINED` has.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        patch_size: int,
        learned: int = 14,
        trained: int = TRAINED,
        image_size: int = TRAINED,
        in_chans: int = 3,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        grid = trained // patch_size
        if image_size // patch_size != grid:
            smallest = grid * patch_size
            raise ValueError(
                f"FF-only's mixing matrices fix the number of {patch_size}x{patch_size} patches: image size "
                f"{image_size} was asked for, {smallest} to {smallest + patch_size - 1} fit"
            )
        self.image_size = image_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.patch_embed = PatchEmbed(in_chans, dim, patch_size)
        self.pos_encoding = PositionEncoding(dim, learned, grid)
        self.blocks = nn.ModuleList(Block(dim, 1 + grid * grid) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, EPSILON)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] != self.image_size or x.shape[3] != self.image_size:
            raise ValueError(
                f"this FF-only takes {self.image_size}x{self.image_size} images, got {x.shape[2]}x{x.shape[3]}"
            )
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), tokens], 1) + self.pos_encoding()
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def ff_linear_tiny(num_classes: int = 1000, image_size: int = TRAINED) -> FFOnly:
    """FF-only tiny, patches of 16: 7.7 M parameters."""
    return FFOnly(192, 12, 16, image_size=image_size, num_classes=num_classes)


def ff_linear_base(num_classes: int = 1000, image_size: int = TRAINED) -> FFOnly:
    """FF-only base, patches of 16: 61.9 M parameters."""
    return FFOnly(768, 12, 16, image_size=image_size, num_classes=num_classes)


def ff_linear_large(num_classes: int = 1000, image_size: int = TRAINED) -> FFOnly:
    """FF-only large, patches of 32, so that its 14x14 position encoding is resized to 7x7: 206.4 M parameters."""
    return FFOnly(1024, 24, 32, image_size=image_size, num_classes=num_classes)
