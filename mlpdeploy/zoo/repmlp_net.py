"""RepMLPNet: hierarchical vision MLP with re-parameterized locality, Ding et al. 2022, arXiv 2112.11081.

Notation: `b` batch, `c` channels, split as `c = (g s)` into `g` groups of `s` share-sets, `h w` the grid. A block mixes
every channel's grid with the matrix of its share-set, and weighs the result per image and channel:

    y[b,g,s,i,j] = sum over p,q of W[s,i,j,p,q] x[b,g,s,p,q] + bias[s,i,j]
    out          = y * sigmoid(fc2(relu(fc1(mean over h,w of x))))

Channel `c` so uses share-set `c mod s`. In the train-time form W and its bias are spread over a matrix with a BatchNorm
and over depthwise convolutions with one each, all of the same x; a deployed checkpoint has their sum. Both forms are
written as the paper describes them: making the first into the second is the compiler's work. The names of the
parameters are those of the authors' checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

KERNELS = (1, 3)
"""Of the convolutions beside the matrix, at train time."""

REDUCTION = 4
"""Channels to hidden neurons of the gate."""

EXPANSION = 4
"""Channels to hidden channels of the feed-forward part."""


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without bias, and its BatchNorm; padded to keep the size where the stride is 1."""
    padding = kernel // 2 if stride == 1 else 0
    pair = nn.Sequential()
    pair.add_module("conv", nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False))
    pair.add_module("bn", nn.BatchNorm2d(outputs))
    return pair


class GlobalPerceptron(nn.Module):
    """The gate of every channel, from the means of all: (b, c, h, w) to (b, c, 1, 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // REDUCTION, 1)
        self.fc2 = nn.Conv2d(channels // REDUCTION, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class RepMLPBlock(nn.Module):
    """Mixing over the grid with shared matrices, and the gate; (b, c, h, w) to the same."""

    def __init__(self, channels: int, grid: int, sharesets: int, deploy: bool) -> None:
        super().__init__()
        self.sharesets = sharesets
        self.gp = GlobalPerceptron(channels)
        neurons = sharesets * grid * grid
        self.fc3 = nn.Conv2d(neurons, neurons, 1, groups=sharesets, bias=deploy)
        self.fc3_bn = nn.Identity() if deploy else nn.BatchNorm2d(sharesets)
        self.local: list[nn.Module] = []
        for kernel in () if deploy else KERNELS:
            branch = conv_bn(sharesets, sharesets, kernel, groups=sharesets)
            self.add_module(f"repconv{kernel}", branch)
            self.local.append(branch)

    def forward(self, x: Tensor) -> Tensor:
        _, c, h, w = x.shape
        s = self.sharesets
        grids = x.reshape(-1, s, h, w)
        mixed = self.fc3_bn(self.fc3(grids.reshape(-1, s * h * w, 1, 1)).reshape(-1, s, h, w))
        for branch in self.local:
            mixed = mixed + branch(grids)
        return mixed.reshape(-1, c, h, w) * self.gp(x)


class FFNBlock(nn.Module):
    """Two 1x1 convolutions with a GELU between them; (b, c, h, w) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ffn_fc1 = conv_bn(channels, channels * EXPANSION, 1)
        self.ffn_fc2 = conv_bn(channels * EXPANSION, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn_fc2(F.gelu(self.ffn_fc1(x)))


class RepMLPNetUnit(nn.Module):
    """x + repmlp_block(prebn1 x), then x + ffn_block(prebn2 x); (b, c, h, w) to the same."""

    def __init__(self, channels: int, grid: int, sharesets: int, deploy: bool) -> None:
        super().__init__()
        self.repmlp_block = RepMLPBlock(channels, grid, sharesets, deploy)
        self.ffn_block = FFNBlock(channels)
        self.prebn1 = nn.BatchNorm2d(channels)
        self.prebn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.repmlp_block(self.prebn1(x))
        return x + self.ffn_block(self.prebn2(x))


class RepMLPNet(nn.Module):
    """The classifier: images (b, in_chans, image_size, image_size) to logits (b, num_classes).

    `blocks`, `channels` and `sharesets` have one entry per stage; the first stage has a grid of `grid` x `grid`, each
    later one half of it. `deploy`: the form of a deployed checkpoint. Raises ValueError where these do not fit.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        channels: Sequence[int],
        sharesets: Sequence[int],
        grid: int,
        patch_size: int = 4,
        image_size: int = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        _check(blocks, channels, sharesets, grid, patch_size, image_size)
        self.image_size = image_size
        self.conv_embedding = conv_bn(in_chans, channels[0], patch_size, patch_size)
        stages, embeds = [], []
        for stage, depth in enumerate(blocks):
            shape = channels[stage], grid >> stage, sharesets[stage], deploy
            stages.append(nn.ModuleList(RepMLPNetUnit(*shape) for _ in range(depth)))
            if stage + 1 < len(blocks):
                embeds.append(conv_bn(channels[stage], channels[stage + 1], 2, 2))
        self.stages = nn.ModuleList(stages)
        self.embeds = nn.ModuleList(embeds)
        self.head_norm = nn.BatchNorm2d(channels[-1])
        self.head = nn.Linear(channels[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] != self.image_size or x.shape[3] != self.image_size:
            raise ValueError(
                f"this RepMLPNet takes {self.image_size}x{self.image_size} images, got {x.shape[2]}x{x.shape[3]}"
            )
        embeds = [self.conv_embedding, *self.embeds]
        for embed, stage in zip(embeds, self.stages, strict=True):
            x = embed(x).relu()
            for unit in stage:  # type: ignore[attr-defined]
                x = unit(x)
        return self.head(self.head_norm(x).mean((2, 3)))


def _check(
    blocks: Sequence[int],
    channels: Sequence[int],
    sharesets: Sequence[int],
    grid: int,
    patch_size: int,
    image_size: int,
) -> None:
    if not len(blocks) == len(channels) == len(sharesets):
        raise ValueError("blocks, channels and sharesets need one entry per stage each")
    if image_size != grid * patch_size:
        raise ValueError(
            f"RepMLPNet's matrices fix the image size: {image_size} was asked for, only {grid * patch_size} fits"
        )
    if grid % (1 << (len(blocks) - 1)):
        raise ValueError(f"a {grid}x{grid} grid cannot be halved {len(blocks) - 1} times")
    for stage, (dim, count) in enumerate(zip(channels, sharesets, strict=True)):
        if dim % count:
            raise ValueError(f"stage {stage}: {dim} channels do not split into {count} share-sets")


def read(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A checkpoint of either form: the deployed one has no BatchNorm after the matrices."""
    return dict(state), {"deploy": not any(".fc3_bn." in key for key in state)}


def repmlpnet_t224(num_classes: int = 1000, image_size: int = 224, deploy: bool = False) -> RepMLPNet:
    """RepMLPNet-T224: 38.3 M parameters."""
    return RepMLPNet((2, 2, 6, 2), (64, 128, 256, 512), (1, 4, 16, 128), 56, 4, image_size, 3, num_classes, deploy)


def repmlpnet_t256(num_classes: int = 1000, image_size: int = 256, deploy: bool = False) -> RepMLPNet:
    """RepMLPNet-T256: 58.7 M parameters."""
    return RepMLPNet((2, 2, 6, 2), (64, 128, 256, 512), (1, 4, 16, 128), 64, 4, image_size, 3, num_classes, deploy)


def repmlpnet_b224(num_classes: int = 1000, image_size: int = 224, deploy: bool = False) -> RepMLPNet:
    """RepMLPNet-B224: 68.2 M parameters."""
    return RepMLPNet((2, 2, 12, 2), (96, 192, 384, 768), (1, 4, 32, 128), 56, 4, image_size, 3, num_classes, deploy)


def repmlpnet_b256(num_classes: int = 1000, image_size: int = 256, deploy: bool = False) -> RepMLPNet:
    """RepMLPNet-B256: 96.5 M parameters."""
    return RepMLPNet((2, 2, 12, 2), (96, 192, 384, 768), (1, 4, 32, 128), 64, 4, image_size, 3, num_classes, deploy)


def repmlpnet_d256(num_classes: int = 1000, image_size: int = 256, deploy: bool = False) -> RepMLPNet:
    """RepMLPNet-D256: 86.9 M parameters, the deepest."""
    return RepMLPNet((2, 2, 18, 2), (80, 160, 320, 640), (1, 4, 16, 128), 64, 4, image_size, 3, num_classes, deploy)


def repmlpnet_l256(num_classes: int = 1000, image_size: int = 256, deploy: bool = False) -> RepMLPNet:
    """RepMLPNet-L256: 117.6 M parameters."""
    return RepMLPNet((2, 2, 18, 2), (96, 192, 384, 768), (1, 4, 32, 256), 64, 4, image_size, 3, num_classes, deploy)
