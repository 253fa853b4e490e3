"""Vision Permutator (ViP): permutable MLP-like architecture for visual recognition, Hou et al. 2021, arXiv 2106.12368.

Notation: `b` batch, `h w` token grid, `c` channels, split as `c = (n s)` into `n` segments of `s` channels. A block
mixes along the height, along the width and along the channels, and weighs the three results per image and channel:

    y_h[b,k,w,n,u] = sum over h,s of W_h[k,u,h,s] x[b,h,w,n,s]
    y_w[b,h,k,n,u] = sum over w,s of W_w[k,u,w,s] x[b,h,w,n,s]
    y_c            = W_c x
    a              = softmax over branches of fc2(gelu(fc1(mean over h,w of (y_h + y_w + y_c))))
    out            = proj(a_h y_h + a_w y_w + a_c y_c)

It is written as the paper describes it, with permutations: removing them is the compiler's work. The names of the
parameters are those of the authors' checkpoints, which therefore load strictly and unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, on the last axis."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class WeightedPermuteMLP(nn.Module):
    """Mixing along height, width and channels with learned weights for the three; (b, h, w, c) to the same.

    `mlp_h` and `mlp_w` are square over `dim`, and contract `h * s` and `w * s` elements, so the number of segments
    must equal the height and the width of the grid.
    """

    def __init__(self, dim: int, segments: int) -> None:
        super().__init__()
        self.segments = segments
        self.mlp_c = nn.Linear(dim, dim, bias=False)
        self.mlp_h = nn.Linear(dim, dim, bias=False)
        self.mlp_w = nn.Linear(dim, dim, bias=False)
        self.reweight = Mlp(dim, dim // 4, dim * 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        n, s = self.segments, c // self.segments

        along_h = x.reshape(b, h, w, n, s).permute(0, 3, 2, 1, 4).reshape(b, n, w, h * s)
        along_h = self.mlp_h(along_h).reshape(b, n, w, h, s).permute(0, 3, 2, 1, 4).reshape(b, h, w, c)

        along_w = x.reshape(b, h, w, n, s).permute(0, 1, 3, 2, 4).reshape(b, h, n, w * s)
        along_w = self.mlp_w(along_w).reshape(b, h, n, w, s).permute(0, 1, 3, 2, 4).reshape(b, h, w, c)

        along_c = self.mlp_c(x)

        pooled = (along_h + along_w + along_c).permute(0, 3, 1, 2).flatten(2).mean(2)
        # The branch is the fastest axis of the 3c outputs of fc2: row 3*channel + branch.
        weights = self.reweight(pooled).reshape(b, c, 3).permute(2, 0, 1).softmax(0).unsqueeze(2).unsqueeze(2)
        return self.proj(along_h * weights[0] + along_w * weights[1] + along_c * weights[2])


class PermutatorBlock(nn.Module):
    """x + attn(norm1 x), then x + mlp(norm2 x); (b, h, w, c) to the same."""

    def __init__(self, dim: int, segments: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WeightedPermuteMLP(dim, segments)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, dim * mlp_ratio, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """A strided convolution from an image (b, c, h, w) to a grid of tokens (b, c', h', w')."""

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class Downsample(nn.Module):
    """A strided convolution on a grid of tokens, channels last: (b, h, w, c) to (b, h/stride, w/stride, c')."""

    def __init__(self, dim: int, out: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, out, kernel_size=stride, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class VisionPermutator(nn.Module):
    """The classifier: images (b, in_chans, image_size, image_size) to logits (b, num_classes).

    `layers`, `dims`, `segments` and `transitions` have one entry per stage: the number of blocks, the channels, the
    segments, and whether the grid is halved after the stage. Raises ValueError where they do not fit each other, or
    where the grid of a stage is not as wide and high as the stage has segments.
    """

    def __init__(
        self,
        layers: Sequence[int],
        dims: Sequence[int],
        segments: Sequence[int],
        transitions: Sequence[bool],
        patch_size: int = 7,
        mlp_ratio: int = 3,
        image_size: int = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        _check_grid(layers, dims, segments, transitions, patch_size, image_size)
        self.image_size = image_size
        self.patch_embed = PatchEmbed(in_chans, dims[0], patch_size)
        stages: list[nn.Module] = []
        for stage, (depth, dim) in enumerate(zip(layers, dims, strict=True)):
            stages.append(nn.Sequential(*(PermutatorBlock(dim, segments[stage], mlp_ratio) for _ in range(depth))))
            last = stage == len(layers) - 1
            if not last and (transitions[stage] or dims[stage + 1] != dim):
                stages.append(Downsample(dim, dims[stage + 1], 2 if transitions[stage] else 1))
        self.network = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] != self.image_size or x.shape[3] != self.image_size:
            raise ValueError(
                f"this ViP takes {self.image_size}x{self.image_size} images, got {x.shape[2]}x{x.shape[3]}"
            )
        x = self.patch_embed(x).permute(0, 2, 3, 1)
        for stage in self.network:
            x = stage(x)
        return self.head(self.norm(x.flatten(1, 2)).mean(1))


def _check_grid(
    layers: Sequence[int],
    dims: Sequence[int],
    segments: Sequence[int],
    transitions: Sequence[bool],
    patch_size: int,
    image_size: int,
) -> None:
    if not len(layers) == len(dims) == len(segments) == len(transitions):
        raise ValueError("layers, dims, segments and transitions need one entry per stage each")
    # The mixing matrices fix the grid, so exactly one image size fits.
    fitting = segments[0] * patch_size
    if image_size != fitting:
        raise ValueError(f"ViP's mixing matrices fix the image size: {image_size} was asked for, only {fitting} fits")
    grid = image_size // patch_size
    for stage, (dim, count) in enumerate(zip(dims, segments, strict=True)):
        if count != grid:
            raise ValueError(f"stage {stage} has {count} segments on a {grid}x{grid} grid; the numbers must be equal")
        if dim % count:
            raise ValueError(f"stage {stage}: {dim} channels do not split into {count} segments")
        if transitions[stage] and stage < len(layers) - 1:
            if grid % 2:
                raise ValueError(f"stage {stage}: a {grid}x{grid} grid cannot be halved")
            grid //= 2


def vip_s14(num_classes: int = 1000, image_size: int = 224) -> VisionPermutator:
    """ViP-Small/14: 29.9 M parameters, a 16x16 grid throughout."""
    return VisionPermutator(
        layers=(4, 3, 8, 3),
        dims=(384, 384, 384, 384),
        segments=(16, 16, 16, 16),
        transitions=(False, False, False, False),
        patch_size=14,
        image_size=image_size,
        num_classes=num_classes,
    )


def vip_s7(num_classes: int = 1000, image_size: int = 224) -> VisionPermutator:
    """ViP-Small/7: 25.1 M parameters, a 32x32 grid in the first stage, then 16x16."""
    return VisionPermutator(
        layers=(4, 3, 8, 3),
        dims=(192, 384, 384, 384),
        segments=(32, 16, 16, 16),
        transitions=(True, False, False, False),
        image_size=image_size,
        num_classes=num_classes,
    )


def vip_m7(num_classes: int = 1000, image_size: int = 224) -> VisionPermutator:
    """ViP-Medium/7: 55.3 M parameters, a 32x32 grid in the first two stages, then 16x16."""
    return VisionPermutator(
        layers=(4, 3, 14, 3),
        dims=(256, 256, 512, 512),
        segments=(32, 32, 16, 16),
        transitions=(False, True, False, False),
        image_size=image_size,
        num_classes=num_classes,
    )


def vip_l7(num_classes: int = 1000, image_size: int = 224) -> VisionPermutator:
    """ViP-Large/7: 87.8 M parameters, a 32x32 grid in the first stage, then 16x16."""
    return VisionPermutator(
        layers=(8, 8, 16, 4),
        dims=(256, 512, 512, 512),
        segments=(32, 16, 16, 16),
        transitions=(True, False, False, False),
        image_size=image_size,
        num_classes=num_classes,
    )
