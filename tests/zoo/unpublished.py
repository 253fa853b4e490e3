"""Blocks of three papers that published no code, as small networks for the compiler; no checkpoint of theirs has them.

What the papers do not say (widths, depths, grids, how band weights are made) is chosen here. Factories take no
arguments, so that `mlpdeploy build tests.zoo.unpublished:hourglass --input-shape 3,16,16` builds an engine.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Hourglass(nn.Module):
    """Wide-narrow-wide residual MLP (arXiv 2510.01796): images (b, 3, s, s) to logits (b, classes).

    z_0 = W_in x with a fixed random W_in, z_{i+1} = z_i + W_2 gelu(W_1 norm(z_i)) with a narrow middle, y = W_out z.
    """

    def __init__(self, size: int, wide: int, narrow: int, depth: int, classes: int) -> None:
        super().__init__()
        pixels = 3 * size * size
        self.w_in: Tensor
        self.register_buffer("w_in", torch.randn(wide, pixels) / math.sqrt(pixels))
        self.norms = nn.ModuleList(nn.LayerNorm(wide) for _ in range(depth))
        self.narrows = nn.ModuleList(nn.Linear(wide, narrow) for _ in range(depth))
        self.widens = nn.ModuleList(nn.Linear(narrow, wide) for _ in range(depth))
        self.w_out = nn.Linear(wide, classes)

    def forward(self, image: Tensor) -> Tensor:
        z = F.linear(image.flatten(1), self.w_in)
        for norm, narrow, widen in zip(self.norms, self.narrows, self.widens, strict=True):
            z = z + widen(F.gelu(narrow(norm(z))))
        return self.w_out(z)


def cosines(n: int) -> Tensor:
    """The orthonormal DCT-II as a matrix (n, n): row u holds the cosine of frequency u."""
    place, frequency = torch.arange(n, dtype=torch.float64) + 0.5, torch.arange(n, dtype=torch.float64)
    rows = torch.cos(math.pi / n * frequency[:, None] * place) * math.sqrt(2 / n)
    return torch.cat([rows[:1] / math.sqrt(2), rows[1:]])


class SpectrumMixer(nn.Module):
    """A token mixer in the DCT domain (arXiv 2309.06721): (b, h, w, c) to the same.

    Every band (u, v) of every group of channels is weighed by what the image holds, and transformed back:
    F = D_h x D_w^T,  y = D_h^T (G F) D_w,  G = softmax over bands of fc2(gelu(fc1(mean x))), times the number of bands.
    """

    def __init__(self, height: int, width: int, dim: int, groups: int) -> None:
        super().__init__()
        self.groups, self.bands = groups, height * width
        self.along_h: Tensor
        self.along_w: Tensor
        self.register_buffer("along_h", cosines(height).float())
        self.register_buffer("along_w", cosines(width).float())
        self.fc1, self.fc2 = nn.Linear(dim, dim // 2), nn.Linear(dim // 2, self.bands * groups)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        weights = self.fc2(F.gelu(self.fc1(x.mean((1, 2))))).reshape(b, h, w, self.groups, 1)
        weights = weights.flatten(1, 2).softmax(1).reshape(b, h, w, self.groups, 1) * self.bands
        spectrum = self._transformed(x, self.along_h, self.along_w).reshape(b, h, w, self.groups, c // self.groups)
        return self._transformed((weights * spectrum).reshape(b, h, w, c), self.along_h.mT, self.along_w.mT)

    def _transformed(self, x: Tensor, along_h: Tensor, along_w: Tensor) -> Tensor:
        x = F.linear(x.permute(0, 2, 3, 1), along_h).permute(0, 3, 1, 2)
        return F.linear(x.permute(0, 1, 3, 2), along_w).permute(0, 1, 3, 2)


class SpectrumNetwork(nn.Module):
    """Patches, blocks of a spectrum mixer and an MLP, and a head: images (b, 3, s, s) to logits (b, classes)."""

    def __init__(self, size: int, patch: int, dim: int, depth: int, classes: int) -> None:
        super().__init__()
        grid = size // patch
        self.stem = nn.Conv2d(3, dim, patch, patch)
        self.mixers = nn.ModuleList(SpectrumMixer(grid, grid, dim, 4) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2 * depth))
        self.ups = nn.ModuleList(nn.Linear(dim, 2 * dim) for _ in range(depth))
        self.downs = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(depth))
        self.head = nn.Linear(dim, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).permute(0, 2, 3, 1)
        for index, (mixer, up, down) in enumerate(zip(self.mixers, self.ups, self.downs, strict=True)):
            x = x + mixer(self.norms[2 * index](x))
            x = x + down(F.gelu(up(self.norms[2 * index + 1](x))))
        return self.head(x.mean((1, 2)))


class PrunedKan(nn.Module):
    """A KAN layer whose every input has kept one kind of basis (arXiv 2408.08338): (b, width) to (b, out).

    y_o = sum over i, k of C[o, i, k] B_ik(x_i): the inputs are expanded, then multiplied with one matrix. A third of
    the inputs each has Gaussians on a grid, Chebyshev polynomials of tanh(x), and a Fourier series.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        assert width % 3 == 0
        self.centres: Tensor
        self.register_buffer("centres", torch.linspace(-2, 2, 4))
        self.coefficients = nn.Parameter(torch.randn(out, width, 4) / math.sqrt(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        local, polynomial, periodic = x.unsqueeze(-1).chunk(3, 1)
        gaussians = torch.exp(-(local - self.centres).square())
        t = polynomial.tanh()
        two = 2 * t * t - 1
        chebyshev = torch.cat([torch.ones_like(t), t, two, 2 * t * two - t], -1)
        fourier = torch.cat([periodic.cos(), periodic.sin(), (2 * periodic).cos(), (2 * periodic).sin()], -1)
        expanded = torch.cat([gaussians, chebyshev, fourier], 1)
        return F.linear(expanded.flatten(1), self.coefficients.flatten(1))


class KanNetwork(nn.Module):
    """Two pruned KAN layers on an image's pixels: (b, 3, s, s) to logits (b, classes)."""

    def __init__(self, size: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.first, self.last = PrunedKan(3 * size * size, hidden), PrunedKan(hidden, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.last(self.norm(self.first(image.flatten(1))))


def hourglass() -> Hourglass:
    """Images 16x16, 512 wide, 64 narrow, four blocks."""
    return Hourglass(size=16, wide=512, narrow=64, depth=4, classes=10)


def spectrum() -> SpectrumNetwork:
    """Images 16x16 in patches of 4, 32 channels, two blocks."""
    return SpectrumNetwork(size=16, patch=4, dim=32, depth=2, classes=10)


def kan() -> KanNetwork:
    """Images 16x16, 48 hidden nodes."""
    return KanNetwork(size=16, hidden=48, classes=10)
