"""Scaling MLPs: a tale of inductive bias, Bachmann, Anagnostidis and Hofmann 2023, arXiv 2306.13575.

An image of 64x64 is one vector of its numbers in the order (channel, height, width); nothing is mixed along any axis:

    x = linear_in(vector);  x += fc2(gelu(fc1(norm(x))))  in each block;  logits = linear_out(x)

The plain network has instead of each block `x = linear(gelu(norm(x)))`. There is no norm before the classifier. The
names of the parameters are those of the authors' checkpoints, which therefore load strictly and unchanged.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

TRAINED = 64
"""The one image size that the first matrix takes."""
IMAGENET21K = 11230
"""Classes of the processed ImageNet-21k on which the published checkpoints were trained."""


class Bottleneck(nn.Module):
    """thin -> wide -> thin, (b, thin) to the same; its norm and its residual lie outside."""

    def __init__(self, thin: int, wide: int) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(thin, wide), nn.GELU(), nn.Linear(wide, thin))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class ScalingMLP(nn.Module):
    """What both networks share: images (b, 3, 64, 64) or vectors (b, 12288) in, logits (b, num_classes) out.

    Subclasses add what lies between, then the classifier. Raises ValueError for another image size: `linear_in` has one
    column for each number of the image.
    """

    linear_out: nn.Linear

    def __init__(self, width: int, depth: int, image_size: int) -> None:
        super().__init__()
        if image_size != TRAINED:
            raise ValueError(f"a Scaling MLP takes {TRAINED}x{TRAINED} images only, {image_size} was asked for")
        self.linear_in = nn.Linear(3 * image_size * image_size, width)
        self.layernorms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))

    def first(self, x: Tensor) -> Tensor:
        """The first layer, on all numbers of each image."""
        x = x.flatten(1)
        if x.shape[1] != self.linear_in.in_features:
            raise ValueError(f"a Scaling MLP takes {self.linear_in.in_features} numbers, got {x.shape[1]}")
        return self.linear_in(x)


class BottleneckMLP(ScalingMLP):
    """Residual blocks that are four times as wide inside."""

    def __init__(self, width: int, depth: int, num_classes: int = IMAGENET21K, image_size: int = TRAINED) -> None:
        super().__init__(width, depth, image_size)
        self.blocks = nn.ModuleList(Bottleneck(width, 4 * width) for _ in range(depth))
        self.linear_out = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block, norm in zip(self.blocks, self.layernorms, strict=True):
            x = x + block(norm(x))
        return self.linear_out(x)


class StandardMLP(ScalingMLP):
    """`depth` layers of one width, the first of them `linear_in`, without residuals."""

    def __init__(self, width: int, depth: int, num_classes: int = IMAGENET21K, image_size: int = TRAINED) -> None:
        super().__init__(width, depth - 1, image_size)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.linear_out = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer, norm in zip(self.layers, self.layernorms, strict=True):
            x = layer(F.gelu(norm(x)))
        return self.linear_out(x)


def scaling_mlp_b_6_wi_512(num_classes: int = IMAGENET21K, image_size: int = TRAINED) -> BottleneckMLP:
    """B-6/Wi-512: 24.7 M parameters."""
    return BottleneckMLP(512, 6, num_classes, image_size)


def scaling_mlp_b_12_wi_512(num_classes: int = IMAGENET21K, image_size: int = TRAINED) -> BottleneckMLP:
    """B-12/Wi-512: 37.3 M parameters."""
    return BottleneckMLP(512, 12, num_classes, image_size)


def scaling_mlp_b_6_wi_1024(num_classes: int = IMAGENET21K, image_size: int = TRAINED) -> BottleneckMLP:
    """B-6/Wi-1024: 74.5 M parameters."""
    return BottleneckMLP(1024, 6, num_classes, image_size)


def scaling_mlp_b_12_wi_1024(num_classes: int = IMAGENET21K, image_size: int = TRAINED) -> BottleneckMLP:
    """B-12/Wi-1024: 124.8 M parameters."""
    return BottleneckMLP(1024, 12, num_classes, image_size)


def scaling_mlp_b_12_wi_1024_in1k(num_classes: int = 1000, image_size: int = TRAINED) -> BottleneckMLP:
    """B-12/Wi-1024 fine-tuned on ImageNet-1k: 114.4 M parameters."""
    return BottleneckMLP(1024, 12, num_classes, image_size)


def scaling_mlp_standard_6x1024(num_classes: int = 10, image_size: int = TRAINED) -> StandardMLP:
    """The authors' plain MLP of six layers, for the ten classes of CIFAR-10: 17.9 M parameters."""
    return StandardMLP(1024, 6, num_classes, image_size)
