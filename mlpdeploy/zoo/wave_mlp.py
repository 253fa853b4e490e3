"""Wave-MLP: an image patch is a wave, phase-aware vision MLP, Tang et al. 2021, arXiv 2111.12294.

Every token is a wave with an amplitude and a phase, both made of the token, and is told as its real and its imaginary
part; theta = relu(batch_norm(conv(x))). Along the width (and likewise along the height) the tokens of a window of 7 are
summed:

    u             = [fc(x) cos(theta(x)), fc(x) sin(theta(x))]                      2c channels
    y[k, i, j]    = sum over r in {0, 1}, t in -3..3 of W[k, r, t] u[2k + r, i, j + t]

Channel k of the result reads the neighbouring channels 2k and 2k + 1 of the concatenation, as the authors' code does:
two real parts for the first half of the channels and two imaginary parts for the second. A third branch projects the
channels alone, and the three are weighed per image and channel. Channels come first.

The names of the parameters are those of the authors' checkpoints, which load strictly and unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]


def group_norm(dim: int) -> nn.GroupNorm:
    """Normalisation of each image over channels and tokens together."""
    return nn.GroupNorm(1, dim)


class Mlp(nn.Module):
    """Two 1x1 convolutions with a GELU between them: (b, dim, h, w) to (b, out, h, w)."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class PATM(nn.Module):
    """Phase-aware token mixing, (b, c, h, w) to the same. `depthwise`: phases come from a 3x3 depthwise convolution."""

    def __init__(self, dim: int, depthwise: bool) -> None:
        super().__init__()
        self.fc_h = nn.Conv2d(dim, dim, 1, bias=False)
        self.fc_w = nn.Conv2d(dim, dim, 1, bias=False)
        self.fc_c = nn.Conv2d(dim, dim, 1, bias=False)
        self.tfc_h = nn.Conv2d(2 * dim, dim, (1, 7), padding=(0, 3), groups=dim, bias=False)
        self.tfc_w = nn.Conv2d(2 * dim, dim, (7, 1), padding=(3, 0), groups=dim, bias=False)
        self.reweight = Mlp(dim, dim // 4, dim * 3)
        self.proj = nn.Conv2d(dim, dim, 1)
        self.theta_h_conv = _phase(dim, depthwise)
        self.theta_w_conv = _phase(dim, depthwise)

    def forward(self, x: Tensor) -> Tensor:
        along_h = self.tfc_h(_wave(self.fc_h(x), self.theta_h_conv(x)))
        along_w = self.tfc_w(_wave(self.fc_w(x), self.theta_w_conv(x)))
        along_c = self.fc_c(x)
        pooled = (along_h + along_w + along_c).mean((2, 3), keepdim=True)
        # The branch is the fastest axis of the 3c outputs of fc2: row 3*channel + branch.
        weights = self.reweight(pooled).reshape(x.shape[0], x.shape[1], 3).permute(2, 0, 1).softmax(0)
        weights = weights.unsqueeze(3).unsqueeze(3)
        return self.proj(along_h * weights[0] + along_w * weights[1] + along_c * weights[2])


def _phase(dim: int, depthwise: bool) -> nn.Sequential:
    """How a token's phase, which is never negative, is found: (b, dim, h, w) to the same."""
    projection = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False) if depthwise else nn.Conv2d(dim, dim, 1)
    return nn.Sequential(projection, nn.BatchNorm2d(dim), nn.ReLU())


def _wave(amplitude: Tensor, phase: Tensor) -> Tensor:
    """Real parts, then imaginary parts: (b, c, h, w) twice to (b, 2c, h, w)."""
    return torch.cat([amplitude * torch.cos(phase), amplitude * torch.sin(phase)], 1)


class WaveBlock(nn.Module):
    """x + attn(norm1 x), then x + mlp(norm2 x); (b, c, h, w) to the same."""

    def __init__(self, dim: int, mlp_ratio: int, norm: Norm, depthwise: bool) -> None:
        super().__init__()
        self.norm1 = norm(dim)
        self.attn = PATM(dim, depthwise)
        self.norm2 = norm(dim)
        self.mlp = Mlp(dim, dim * mlp_ratio, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Embed(nn.Module):
    """A strided convolution of overlapping patches, and a norm if there is one: (b, c, h, w) to (b, c', h', w')."""

    def __init__(self, dim: int, out: int, kernel: int, stride: int, padding: int, norm: Norm) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, out, kernel, stride, padding)
        self.norm = norm(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class WaveNet(nn.Module):
    """The classifier: images (b, 3, h, w) of at least 3x3 to logits (b, num_classes).

    `layers`, `dims` and `mlp_ratios` have one entry per stage; a strided convolution halves the grid between stages.
    `norm`: BatchNorm or `group_norm`; `embed_norm` is that behind the strided convolutions, where it is another one.
    Raises ValueError where an image is smaller than the patches of the first embedding allow.
    """

    def __init__(
        self,
        layers: Sequence[int],
        dims: Sequence[int] = (64, 128, 320, 512),
        mlp_ratios: Sequence[int] = (4, 4, 4, 4),
        norm: Norm = nn.BatchNorm2d,
        depthwise: bool = False,
        embed_norm: Norm | None = None,
        image_size: int = 224,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        _check_size(image_size, image_size)
        between = norm if embed_norm is None else embed_norm
        self.patch_embed = Embed(3, dims[0], kernel=7, stride=4, padding=2, norm=between)
        network: list[nn.Module] = []
        for stage, (depth, dim) in enumerate(zip(layers, dims, strict=True)):
            blocks = (WaveBlock(dim, mlp_ratios[stage], norm, depthwise) for _ in range(depth))
            network.append(nn.Sequential(*blocks))
            if stage < len(layers) - 1:
                network.append(Embed(dim, dims[stage + 1], kernel=3, stride=2, padding=1, norm=between))
        self.network = nn.ModuleList(network)
        self.norm = norm(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        _check_size(x.shape[2], x.shape[3])
        x = self.patch_embed(x)
        for stage in self.network:
            x = stage(x)
        return self.head(self.norm(x).mean((2, 3)))


def _check_size(height: int, width: int) -> None:
    if min(height, width) < 3:
        raise ValueError(f"images of {height}x{width} are too small: the first convolution needs 3x3")


def wavemlp_t_dw(num_classes: int = 1000, image_size: int = 224) -> WaveNet:
    """Wave-MLP-T*: 15.3 M parameters, phases from depthwise convolutions."""
    return WaveNet((2, 2, 4, 2), depthwise=True, image_size=image_size, num_classes=num_classes)


def wavemlp_t(num_classes: int = 1000, image_size: int = 224) -> WaveNet:
    """Wave-MLP-T: 17.2 M parameters."""
    return WaveNet((2, 2, 4, 2), image_size=image_size, num_classes=num_classes)


def wavemlp_s(num_classes: int = 1000, image_size: int = 224) -> WaveNet:
    """Wave-MLP-S: 30.7 M parameters, GroupNorm."""
    return WaveNet((2, 3, 10, 3), norm=group_norm, image_size=image_size, num_classes=num_classes)


def wavemlp_m(num_classes: int = 1000, image_size: int = 224) -> WaveNet:
    """Wave-MLP-M: 44.1 M parameters, GroupNorm, none behind the strided convolutions."""
    return WaveNet(
        (3, 4, 18, 3), mlp_ratios=(8, 8, 4, 4), norm=group_norm, embed_norm=nn.Identity,
        image_size=image_size, num_classes=num_classes,
    )  # fmt: skip


def wavemlp_b(num_classes: int = 1000, image_size: int = 224) -> WaveNet:
    """Wave-MLP-B: 63.6 M parameters, GroupNorm, none behind the strided convolutions."""
    return WaveNet(
        (2, 2, 18, 2), (96, 192, 384, 768), norm=group_norm, embed_norm=nn.Identity,
        image_size=image_size, num_classes=num_classes,
    )  # fmt: skip
