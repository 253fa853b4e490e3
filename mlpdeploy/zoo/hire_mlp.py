"""Hire-MLP: vision MLP via hierarchical rearrangement, Guo et al. 2021, arXiv 2108.13341.

Notation: `b` batch, `c` channels, `h w` token grid, `p` rows of a region ("pixel"), `s` the step. A block mixes along
the height, along the width and along the channels, and weighs the three results per image and channel. For the height:

    z[b,(c p),a,w] = x[b, c, (a p - s) mod H, w]           rows rolled by s, wrapped to a multiple of p, then grouped
    y_h[b,c,i,w]   = the row i + s (mod H) of the ungrouped W_2 relu(norm(W_1 z))

so tokens meet within regions of p rows (inner-region), and the roll lets these cross the borders (cross-region). The
width is the same with rows and columns exchanged. BatchNorm is the normalisation throughout; channels come first.

The names of the parameters are those of the authors' checkpoints, which load strictly and unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    """Two 1x1 convolutions with a GELU between them: (b, dim, h, w) to (b, out, h, w)."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class HireMLP(nn.Module):
    """Mixing along height, width and channels with learned weights for the three; (b, c, h, w) to the same.

    `pixel`: rows (and columns) of a region. `step`: by how many the regions are displaced, circularly.
    """

    def __init__(self, dim: int, pixel: int, step: int) -> None:
        super().__init__()
        self.pixel, self.step = pixel, step
        self.mlp_h1 = nn.Conv2d(dim * pixel, dim // 2, 1, bias=False)
        self.mlp_h1_norm = nn.BatchNorm2d(dim // 2)
        self.mlp_h2 = nn.Conv2d(dim // 2, dim * pixel, 1)
        self.mlp_w1 = nn.Conv2d(dim * pixel, dim // 2, 1, bias=False)
        self.mlp_w1_norm = nn.BatchNorm2d(dim // 2)
        self.mlp_w2 = nn.Conv2d(dim // 2, dim * pixel, 1)
        self.mlp_c = nn.Conv2d(dim, dim, 1)
        self.reweight = Mlp(dim, dim // 4, dim * 3)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        p = self.pixel

        along_h = self.displaced(x, 2)
        along_h = along_h.reshape(b, c, -1, p, width).permute(0, 1, 3, 2, 4).reshape(b, c * p, -1, width)
        along_h = self.mlp_h2(F.relu(self.mlp_h1_norm(self.mlp_h1(along_h))))
        along_h = along_h.reshape(b, c, p, -1, width).permute(0, 1, 3, 2, 4).reshape(b, c, -1, width)
        along_h = self.replaced(along_h[:, :, :height], 2)

        along_w = self.displaced(x, 3)
        along_w = along_w.reshape(b, c, height, -1, p).permute(0, 1, 4, 2, 3).reshape(b, c * p, height, -1)
        along_w = self.mlp_w2(F.relu(self.mlp_w1_norm(self.mlp_w1(along_w))))
        along_w = along_w.reshape(b, c, p, height, -1).permute(0, 1, 3, 4, 2).reshape(b, c, height, -1)
        along_w = self.replaced(along_w[:, :, :, :width], 3)

        along_c = self.mlp_c(x)

        pooled = (along_h + along_w + along_c).mean((2, 3), keepdim=True)
        # The branch is the fastest axis of the 3c outputs of fc2: row 3*channel + branch.
        weights = self.reweight(pooled).reshape(b, c, 3).permute(2, 0, 1).softmax(0).unsqueeze(3).unsqueeze(3)
        return self.proj(along_h * weights[0] + along_w * weights[1] + along_c * weights[2])

    def displaced(self, x: Tensor, dim: int) -> Tensor:
        """`x` rolled by `step` along `dim`, then continued circularly to a multiple of `pixel`."""
        x = torch.roll(x, self.step, dim) if self.step else x
        rest = -x.shape[dim] % self.pixel
        return torch.cat([x, x.narrow(dim, 0, rest)], dim) if rest else x

    def replaced(self, x: Tensor, dim: int) -> Tensor:
        """`x` rolled back by `step` along `dim`."""
        return torch.roll(x, -self.step, dim) if self.step else x


class HireBlock(nn.Module):
    """x + attn(norm1 x), then x + mlp(norm2 x); (b, c, h, w) to the same."""

    def __init__(self, dim: int, pixel: int, step: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(dim)
        self.attn = HireMLP(dim, pixel, step)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = Mlp(dim, dim * 4, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Embed(nn.Module):
    """A strided convolution with overlapping patches, BatchNorm and ReLU: (b, c, h, w) to (b, c', h', w')."""

    def __init__(self, dim: int, out: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, out, kernel, stride, padding)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.proj(x)))


class HireMLPNet(nn.Module):
    """The classifier: images (b, 3, h, w) of any size that the regions allow to logits (b, num_classes).

    `layers`, `dims`, `pixels`, `step_strides` and `step_dilations` have one entry per stage: the number of blocks, the
    channels, the rows of a region; block j displaces its regions by `(j % step_stride) * step_dilation`.
    Raises ValueError for images so small that a region is more than twice the grid of its stage.
    """

    def __init__(
        self,
        layers: Sequence[int],
        dims: Sequence[int],
        pixels: Sequence[int] = (4, 3, 3, 2),
        step_strides: Sequence[int] = (2, 2, 3, 2),
        step_dilations: Sequence[int] = (2, 2, 1, 1),
        image_size: int = 224,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        self.pixels = tuple(pixels)
        _check_size((image_size, image_size), self.pixels)
        self.patch_embed = Embed(3, dims[0], kernel=7, stride=4, padding=2)
        network: list[nn.Module] = []
        for stage, (depth, dim) in enumerate(zip(layers, dims, strict=True)):
            steps = [(block % step_strides[stage]) * step_dilations[stage] for block in range(depth)]
            network.append(nn.Sequential(*(HireBlock(dim, pixels[stage], step) for step in steps)))
            if stage < len(layers) - 1:
                network.append(Embed(dim, dims[stage + 1], kernel=3, stride=2, padding=1))
        self.network = nn.ModuleList(network)
        self.norm = nn.BatchNorm2d(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        _check_size((x.shape[2], x.shape[3]), self.pixels)
        x = self.patch_embed(x)
        for stage in self.network:
            x = stage(x)
        return self.head(self.norm(x).mean((2, 3)))


def _check_size(size: tuple[int, int], pixels: Sequence[int]) -> None:
    """Raise ValueError where continuing a stage's grid circularly to whole regions takes more than one turn."""
    for length in size:
        grid = (length - 3) // 4 + 1
        for stage, pixel in enumerate(pixels):
            if grid < 1 or -grid % pixel > grid:
                raise ValueError(f"images of {size[0]}x{size[1]} are too small: stage {stage} mixes {pixel} rows")
            grid = (grid - 1) // 2 + 1


def hire_mlp_tiny(num_classes: int = 1000, image_size: int = 224) -> HireMLPNet:
    """Hire-MLP-Tiny: 18.0 M parameters."""
    return HireMLPNet((2, 2, 4, 2), (64, 128, 320, 512), image_size=image_size, num_classes=num_classes)


def hire_mlp_small(num_classes: int = 1000, image_size: int = 224) -> HireMLPNet:
    """Hire-MLP-Small: 33.1 M parameters."""
    return HireMLPNet((3, 4, 10, 3), (64, 128, 320, 512), image_size=image_size, num_classes=num_classes)


def hire_mlp_base(num_classes: int = 1000, image_size: int = 224) -> HireMLPNet:
    """Hire-MLP-Base: 58.2 M parameters."""
    return HireMLPNet((4, 6, 24, 3), (64, 128, 320, 512), image_size=image_size, num_classes=num_classes)


def hire_mlp_large(num_classes: int = 1000, image_size: int = 224) -> HireMLPNet:
    """Hire-MLP-Large: 95.7 M parameters."""
    return HireMLPNet((4, 6, 24, 3), (96, 192, 384, 768), image_size=image_size, num_classes=num_classes)
