"""MAXIM: multi-axis MLP for image processing, Tu et al. 2022, arXiv 2201.02973. Images to restored images.

One to three U-Nets follow each other. Each takes the image at three scales, has an encoder and a decoder of three
levels, and joins them by cross gating of features from all levels; the features and the image of one U-Net's levels
enter the next through supervised attention. It restores the image at every level of every U-Net; the last result, of
the last U-Net at full size, is the one that counts.

The names of the parameters are those of the authors' PyTorch port, and `maxim_3s` has the parts that this port makes
and never uses, so that its checkpoints load strictly; those of the JAX original do without them
(see `read_3s`). See `zoo.maxim_blocks` for the blocks and the notation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpdeploy.zoo import flax
from mlpdeploy.zoo.maxim_blocks import ConvolutionalAttention, CrossGating, DenseAttention, MultiAxisGmlp
from mlpdeploy.zoo.maxim_unused import add_unused

LEVELS = 3
SIZES = (16, 16, 8)
"""Height and width of the grid and of the blocks at each level."""
BOTTLENECK_SIZE = 8
MULTIPLE = 64
"""Of which height and width are multiples: three halvings, then a grid of 8x8."""


def pick(image: Tensor, level: int) -> Tensor:
    """The image (b, c, h, w) at a level: the pixel right of and below the middle of each square of 2**level pixels."""
    step = 2**level
    return image[:, :, step // 2 :: step, step // 2 :: step]


def shrink(x: Tensor, ratio: int) -> Tensor:
    """(b, c, h, w) at (h / ratio, w / ratio) by antialiased linear interpolation.

    Along each axis the weights are a triangle 2 * ratio pixels wide; at the borders, where a part of it lies outside,
    the rest is scaled to the sum 1.
    """
    c, h, w = x.shape[1:]
    places = torch.arange(2 * ratio, dtype=x.dtype, device=x.device)
    taps = ratio - (places - (ratio - 0.5)).abs()
    inside_h, inside_w = (
        F.conv1d(x.new_ones(1, 1, size), taps[None, None], stride=ratio, padding=ratio // 2) for size in (h, w)
    )
    kernel = (taps[:, None] * taps).expand(c, 1, 2 * ratio, 2 * ratio)
    sums = F.conv2d(x, kernel, stride=ratio, padding=ratio // 2, groups=c)
    return sums / (inside_h.transpose(1, 2) * inside_w)


class Resample(nn.Module):
    """Features (b, c, h, w) from one level at another, by linear interpolation, then a 1x1 convolution."""

    def __init__(self, features: int, source: int, target: int) -> None:
        super().__init__()
        self.source, self.target = source, target
        self.Conv_0 = nn.Conv2d(features * 2**source, features * 2**target, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.target > self.source:
            x = shrink(x, 2 ** (self.target - self.source))
        elif self.target < self.source:
            h, w = x.shape[2], x.shape[3]
            ratio = 2 ** (self.source - self.target)
            x = F.interpolate(x, size=(h * ratio, w * ratio), mode="bilinear", align_corners=False)
        return self.Conv_0(x)


class EncoderBlock(nn.Module):
    """Multi-axis gMLPs and convolutional attention in turn; (b, inputs, h, w) to (b, dim, h, w).

    With `crossed`, features of the U-Net before gate the result. With `halve`, a convolution that halves height and
    width makes the second of two results.
    """

    def __init__(self, inputs: int, dim: int, size: int, *, crossed: bool = False, halve: bool = False) -> None:
        super().__init__()
        self.Conv_0 = nn.Conv2d(inputs, dim, 1)
        self.SplitHeadMultiAxisGmlpLayer_0 = MultiAxisGmlp(dim, size)
        self.SplitHeadMultiAxisGmlpLayer_1 = MultiAxisGmlp(dim, size)
        self.channel_attention_block_10 = ConvolutionalAttention(dim)
        self.channel_attention_block_11 = ConvolutionalAttention(dim)
        if crossed:
            self.cross_gating_block = CrossGating(dim, dim, size)
        if halve:
            self.Conv_1 = nn.Conv2d(dim, dim, 4, stride=2, padding=1)

    def forward(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        shortcut = self.Conv_0(x)
        x = shortcut.permute(0, 2, 3, 1)
        x = self.channel_attention_block_10(self.SplitHeadMultiAxisGmlpLayer_0(x))
        x = self.channel_attention_block_11(self.SplitHeadMultiAxisGmlpLayer_1(x))
        x = x.permute(0, 3, 1, 2) + shortcut
        return x if before is None else self.cross_gating_block(x, before)[0]


class DecoderBlock(nn.Module):
    """Features of the level below (b, below, h / 2, w / 2) and a bridge (b, 3 dim, h, w) to (b, dim, h, w)."""

    def __init__(self, below: int, dim: int, size: int) -> None:
        super().__init__()
        self.ConvTranspose_0 = nn.ConvTranspose2d(below, dim, 2, stride=2)
        self.UNetEncoderBlock_0 = EncoderBlock(4 * dim, dim, size)

    def forward(self, x: Tensor, bridge: Tensor) -> Tensor:
        return self.UNetEncoderBlock_0(torch.cat([self.ConvTranspose_0(x), bridge], 1))


class Bottleneck(nn.Module):
    """Multi-axis gMLPs and dense attention in turn, at the lowest level; (b, dim, h, w) to the same."""

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.input_proj = nn.Conv2d(dim, dim, 1)
        self.SplitHeadMultiAxisGmlpLayer_0 = MultiAxisGmlp(dim, size)
        self.SplitHeadMultiAxisGmlpLayer_1 = MultiAxisGmlp(dim, size)
        self.channel_attention_block_1_0 = DenseAttention(dim)
        self.channel_attention_block_1_1 = DenseAttention(dim)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.input_proj(x)
        x = shortcut.permute(0, 2, 3, 1)
        x = self.channel_attention_block_1_0(self.SplitHeadMultiAxisGmlpLayer_0(x))
        x = self.channel_attention_block_1_1(self.SplitHeadMultiAxisGmlpLayer_1(x))
        return x.permute(0, 3, 1, 2) + shortcut


class SupervisedAttention(nn.Module):
    """Features (b, c, h, w) and the image at their level to attended features and the restored image."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.Conv_0 = nn.Conv2d(dim, dim, 3, padding=1)
        self.Conv_1 = nn.Conv2d(dim, 3, 3, padding=1)
        self.Conv_2 = nn.Conv2d(3, dim, 3, padding=1)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        restored = self.Conv_1(x) + image
        return x + self.Conv_0(x) * torch.sigmoid(self.Conv_2(restored)), restored


class Maxim(nn.Module):
    """`stages` U-Nets: images (b, 3, h, w) to, for each U-Net, the images restored at (h/4, w/4), (h/2, w/2), (h, w).

    Raises ValueError where `image_size` (or, on a call, h or w) is no multiple of 64.
    """

    def __init__(self, stages: int, features: int = 32, image_size: int = 256) -> None:
        super().__init__()
        if image_size < MULTIPLE or image_size % MULTIPLE:
            raise ValueError(f"MAXIM's grids and blocks need an image size that is a multiple of {MULTIPLE}")
        self.stages, self.features = stages, features
        for stage in range(stages):
            self._add_stage(stage)

    def _add_stage(self, stage: int) -> None:
        dims = [self.features * 2**level for level in range(LEVELS)]
        prefix, last = f"stage_{stage}", stage == self.stages - 1
        for level, (dim, size) in enumerate(zip(dims, SIZES, strict=True)):
            below, crossed = dims[min(level + 1, LEVELS - 1)], stage > 0
            self.add_module(f"{prefix}_input_conv_{level}", nn.Conv2d(3, dim, 3, padding=1))
            if crossed:
                self.add_module(f"{prefix}_input_fuse_sam_{level}", CrossGating(dim, dim, size))
            inputs = dim + (dims[level - 1] if level else dim)
            encoder = EncoderBlock(inputs, dim, size, crossed=crossed, halve=True)
            self.add_module(f"{prefix}_encoder_block_{level}", encoder)
            self.add_module(f"{prefix}_cross_gating_block_{level}", CrossGating(LEVELS * dim, dim, size, below))
            self.add_module(f"{prefix}_decoder_block_{level}", DecoderBlock(below, dim, size))
            if last:
                self.add_module(f"{prefix}_output_conv_{level}", nn.Conv2d(dim, 3, 3, padding=1))
            else:
                self.add_module(f"{prefix}_supervised_attention_module_{level}", SupervisedAttention(dim))
        for index in range(2):
            self.add_module(f"{prefix}_global_block_{index}", Bottleneck(dims[-1], BOTTLENECK_SIZE))
        for part, target, source in _resampled():
            name = f"UpSampleRatio_{_number(stage, part, target, source)}"
            self.add_module(name, Resample(self.features, source, target))

    def part(self, stage: int, name: str, index: int) -> nn.Module:
        """The module `stage_<stage>_<name>_<index>`."""
        return self.get_submodule(f"stage_{stage}_{name}_{index}")

    def signal(self, stage: int, part: int, target: int, features: list[Tensor]) -> Tensor:
        """Features of all levels at one level, side by side: from the first level on, or for a decoder the last."""
        sources = range(LEVELS) if part == CROSSING else reversed(range(LEVELS))
        names = [(f"UpSampleRatio_{_number(stage, part, target, source)}", features[source]) for source in sources]
        return torch.cat([self.get_submodule(name)(x) for name, x in names], 1)

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        h, w = x.shape[2], x.shape[3]
        if h % MULTIPLE or w % MULTIPLE:
            raise ValueError(f"MAXIM takes images whose sides are multiples of {MULTIPLE}, got {h}x{w}")
        images = [pick(x, level) for level in range(LEVELS)]
        inputs = before = None
        restored = []
        for stage in range(self.stages):
            encoded, decoded = self._u_net(stage, images, inputs, before)
            before = [one + other for one, other in zip(encoded, decoded, strict=True)]
            inputs, results = self._restore(stage, images, decoded)
            restored.append(results[::-1])
        return restored

    def _u_net(
        self, stage: int, images: list[Tensor], inputs: list[Tensor] | None, before: list[Tensor] | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Encoder and decoder features, level by level; `inputs` and `before` come from the U-Net before."""
        encoded: list[Tensor] = []
        x = images[0]
        for level, image in enumerate(images):
            scale = self.part(stage, "input_conv", level)(image)
            if inputs is not None:
                scale, _ = self.part(stage, "input_fuse_sam", level)(scale, inputs[level])
            encoder = self.part(stage, "encoder_block", level)
            x = torch.cat([x if level else scale, scale], 1)
            encoded.append(encoder(x, None if before is None else before[level]))
            x = self.part(stage, f"encoder_block_{level}.Conv", 1)(encoded[-1])
        for index in range(2):
            x = self.part(stage, "global_block", index)(x)
        gating = x
        bridges: list[Tensor] = []
        for level in reversed(range(LEVELS)):
            block = self.part(stage, "cross_gating_block", level)
            bridge, gating = block(self.signal(stage, CROSSING, level, encoded), gating)
            bridges.insert(0, bridge)
        decoded: list[Tensor] = []
        for level in reversed(range(LEVELS)):
            x = self.part(stage, "decoder_block", level)(x, self.signal(stage, DECODING, level, bridges))
            decoded.insert(0, x)
        return encoded, decoded

    def _restore(self, stage: int, images: list[Tensor], decoded: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Attended features for the next U-Net (none after the last) and restored images, level by level."""
        if stage == self.stages - 1:
            heads = [self.part(stage, "output_conv", level) for level in range(LEVELS)]
            return [], [head(x) + image for head, x, image in zip(heads, decoded, images, strict=True)]
        modules = [self.part(stage, "supervised_attention_module", level) for level in range(LEVELS)]
        pairs = [attend(x, image) for attend, x, image in zip(modules, decoded, images, strict=True)]
        return [features for features, _ in pairs], [image for _, image in pairs]


CROSSING, DECODING = range(2)


def _resampled() -> list[tuple[int, int, int]]:
    """(part, target level, source level) of every resampling of a U-Net."""
    levels = range(LEVELS)
    return [(part, target, source) for part in (CROSSING, DECODING) for target in levels for source in levels]


def _number(stage: int, part: int, target: int, source: int) -> int:
    """The number in the name of a resampling: targets from the last level to the first, a decoder's sources too."""
    place = source if part == CROSSING else LEVELS - 1 - source
    return ((stage * 2 + part) * LEVELS + LEVELS - 1 - target) * LEVELS + place


def maxim_1s(image_size: int = 256) -> Maxim:
    """MAXIM S-1: one U-Net, 6.1 M parameters."""
    return Maxim(1, image_size=image_size)


def maxim_2s(image_size: int = 256) -> Maxim:
    """MAXIM S-2: two U-Nets, 14.2 M parameters."""
    return Maxim(2, image_size=image_size)


def maxim_3s(image_size: int = 256, unused: bool = True) -> Maxim:
    """MAXIM S-3: three U-Nets, 22.2 M parameters, and 4.5 M that the port makes and never uses."""
    network = Maxim(3, image_size=image_size)
    return add_unused(network, SIZES) if unused else network


def read(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The port's keys and layouts from those of the JAX original's `.npz` files; the port's stay as they are."""
    if not flax.is_flax(state):
        return state, {}
    # What a training program keeps beside the parameters: the state of the optimiser.
    prefix = "opt/target/" if any(path.startswith("opt/target/") for path in state) else ""
    paths = {path.removeprefix(prefix): tensor for path, tensor in state.items() if path.startswith(prefix)}
    names = {"kernel": "weight", "scale": "gamma", "bias": "bias"}
    norms = {path.rpartition("/")[0] for path in paths if path.endswith("/scale")}
    renamed = {}
    for path, tensor in paths.items():
        module, _, leaf = path.rpartition("/")
        name = "beta" if leaf == "bias" and module in norms else names.get(leaf, leaf)
        renamed[f"{module.replace('/', '.')}.{name}"] = flax.layout(path, tensor)
    return renamed, {}


def read_3s(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """As `read`; the JAX original has no unused parts."""
    return read(state)[0], {"unused": not flax.is_flax(state)}
