"""Activator: GLU activations as the core functions of a vision transformer, Abdullah and Aydin 2024, arXiv 2405.15953.

Notation: `b` batch, `t` tokens (patches), `c` channels. A block gates each token with itself; tokens are never mixed
before their mean, and there are no positions:

    x = x + W_3 (norm_g(gelu(W_1 z)) * norm_g(W_2 z)),   z = norm(x)
    x = x + ffn(norm(x))                                 (left out where only the gated unit is wanted)

Both factors share norm_g, and both sub-layers share norm: each of the two has one scale and shift. The names of the
parameters are those of the authors' checkpoints.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 4


class ActivatorGatingUnit(nn.Module):
    """W_3 (norm(gelu(W_1 x)) * norm(W_2 x)); (b, t, c) to the same."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.proj_1 = nn.Linear(dim, hidden)
        self.proj_2 = nn.Linear(dim, hidden)
        self.proj_3 = nn.Linear(hidden, dim)
        self.norm = nn.LayerNorm(hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_3(self.norm(F.gelu(self.proj_1(x))) * self.norm(self.proj_2(x)))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them; (b, t, c) to the same."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        # The second linear is number 3 of the authors' sequence, behind a GELU and a dropout.
        self.net = nn.ModuleDict({"0": nn.Linear(dim, hidden), "3": nn.Linear(hidden, dim)})

    def forward(self, x: Tensor) -> Tensor:
        return self.net["3"](F.gelu(self.net["0"](x)))


class ActivatorBlock(nn.Module):
    """x + actgu(norm x), then x + ffn(norm x) with the same norm, where there is an ffn; (b, t, c) to the same."""

    def __init__(self, dim: int, hidden: int, feed_forward: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.actgu = ActivatorGatingUnit(dim, hidden)
        self.ffn = FeedForward(dim, hidden) if feed_forward else None

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.actgu(self.norm(x))
        return x if self.ffn is None else x + self.ffn(self.norm(x))


class Activator(nn.Module):
    """The classifier: images (b, in_chans, height, width) to logits (b, num_classes).

    Height and width may be any multiples of the patch size; `image_size` only checks that. Raises ValueError where it
    is no multiple.
    """

    def __init__(
        self,
        feed_forward: bool,
        depth: int = 4,
        dim: int = 256,
        hidden: int = 512,
        patch_size: int = PATCH,
        image_size: int = 32,
        in_chans: int = 3,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        if image_size < patch_size or image_size % patch_size:
            raise ValueError(f"image size {image_size} is no multiple of the patch size {patch_size}")
        self.model = nn.Sequential(*(ActivatorBlock(dim, hidden, feed_forward) for _ in range(depth)))
        self.patcher = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size)
        self.classifier = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patcher(x).flatten(2).transpose(1, 2)
        return self.classifier(self.model(tokens).mean(1))


def activator(num_classes: int = 10, image_size: int = 32) -> Activator:
    """Gated units and feed-forward layers: 2.7 M parameters, any multiple of 4 as image size."""
    return Activator(True, image_size=image_size, num_classes=num_classes)


def activator_only_geglu(num_classes: int = 10, image_size: int = 32) -> Activator:
    """Gated units alone: 1.6 M parameters, any multiple of 4 as image size."""
    return Activator(False, image_size=image_size, num_classes=num_classes)
