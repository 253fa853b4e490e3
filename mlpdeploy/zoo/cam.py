"""Coordinate-aware modulation (CAM) for neural fields: Lee et al. 2023, arXiv 2311.14993.

A network is one signal: it takes points p and gives the signal's value at each. CAM scales and shifts the features of
a layer by numbers that a grid of its own holds for the place of the point (bilinear between the grid's nodes):

    image:  h = relu(gamma(p) * norm(W h + b) + beta(p)),   out = sigmoid(W h + b),   first h = (sin, cos)(sigma P p)
    1-D:    h = gamma(p) * (W h + b) + beta(p),             out = W h + b,            first h = p or its encoding

The baselines have gamma = 1 and beta = 0, and that of the image does not normalise.

`norm` subtracts the mean over a point's own features and divides by their deviation. The first axis of every input is
the points, and any axes before the last are. The names of the parameters are those of the authors' checkpoints.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FREQUENCIES, HIDDEN, SIGMA = 256, 256, 10
LINE_HIDDEN, OCTAVES = 64, 16


class RandomFourier(nn.Module):
    """Sines, then cosines, of fixed random projections: points (..., 2) to (..., 2 * FREQUENCIES)."""

    def __init__(self) -> None:
        super().__init__()
        self.proj: Tensor
        self.register_buffer("proj", torch.randn(2, FREQUENCIES) * (2 * math.pi))

    def forward(self, points: Tensor) -> Tensor:
        angles = points @ (self.proj * SIGMA)
        return torch.cat([angles.sin(), angles.cos()], -1)


class Layer(nn.Module):
    """A linear layer."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class ModulatedLayer(nn.Module):
    """A linear layer, normalised and modulated: features (..., width) at points (..., 2) to (..., out)."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.affine = nn.Parameter(torch.cat([torch.ones(1, 1, 32, 32), torch.zeros(1, 1, 32, 32)], 1))

    def forward(self, x: Tensor, points: Tensor) -> Tensor:
        x = self.linear(x)
        scale, shift = sample(self.affine, points, "border")
        return F.layer_norm(x, x.shape[-1:]) * scale + shift


def sample(affine: Tensor, points: Tensor, padding: str) -> tuple[Tensor, Tensor]:
    """Both channels of `affine` (1, 2, h, w) at points (..., 2) in [0, 1], x before y: two tensors (..., 1)."""
    grid = points.reshape(1, -1, 1, 2) * 2 - 1
    found = F.grid_sample(affine, grid, padding_mode=padding, align_corners=True)
    scale, shift = found.reshape(2, *points.shape[:-1], 1).unbind()
    return scale, shift


class ImageField(nn.Module):
    """An image: points (..., 2) in [0, 1] to RGB (..., 3) in [0, 1]; with `modulated` the layers have grids."""

    def __init__(self, modulated: bool) -> None:
        super().__init__()
        self.modulated = modulated
        kind = ModulatedLayer if modulated else Layer
        self.pos_enc = RandomFourier()
        self.FC_0 = kind(2 * FREQUENCIES, HIDDEN)
        self.FC_1 = kind(HIDDEN, HIDDEN)
        self.FC_2 = kind(HIDDEN, HIDDEN)
        self.FC_final = Layer(HIDDEN, 3)

    def forward(self, points: Tensor) -> Tensor:
        x = self.pos_enc(points)
        for layer in (self.FC_0, self.FC_1, self.FC_2):
            x = torch.relu(layer(x, points) if self.modulated else layer(x))
        return torch.sigmoid(self.FC_final(x))


class Octaves(nn.Module):
    """A number and its sines and cosines at 16 octaves: (..., 1) to (..., 33)."""

    def __init__(self) -> None:
        super().__init__()
        self.scales: Tensor
        self.register_buffer("scales", torch.tensor([2**octave for octave in range(OCTAVES)]))

    def forward(self, x: Tensor) -> Tensor:
        angles = x * self.scales.to(x.dtype)
        return torch.cat([x, torch.cat([angles, angles + math.pi / 2], -1).sin()], -1)


class LineField(nn.Module):
    """A function of one number: points (..., 1) in [0, 1] to values (..., 1).

    With `encoded` of its octaves, with `modulated` the layers have grids.
    """

    def __init__(self, encoded: bool, modulated: bool = True) -> None:
        super().__init__()
        self.time_encoder = Octaves() if encoded else None
        widths = (1 + 2 * OCTAVES if encoded else 1, LINE_HIDDEN, LINE_HIDDEN, LINE_HIDDEN)
        self.net = nn.ModuleList(nn.Linear(width, LINE_HIDDEN) for width in widths)
        self.net_last = nn.Linear(LINE_HIDDEN, 1)
        line = torch.cat([torch.ones(1, 1, 64, 1), torch.zeros(1, 1, 64, 1)], 1)
        self.affine = nn.ParameterList(line.clone() for _ in widths) if modulated else None

    def forward(self, points: Tensor) -> Tensor:
        x = points if self.time_encoder is None else self.time_encoder(points)
        # The grid has one column, whose middle is 0.5.
        place = torch.cat([torch.full_like(points, 0.5), points], -1)
        for index, layer in enumerate(self.net):
            x = layer(x)
            if self.affine is not None:
                scale, shift = sample(self.affine[index], place, "zeros")
                x = x * scale + shift
        return self.net_last(x)


def cam_image_cam() -> ImageField:
    """An image with modulation: 0.27 M parameters."""
    return ImageField(modulated=True)


def cam_image_ffn() -> ImageField:
    """The baseline without modulation: 0.26 M parameters."""
    return ImageField(modulated=False)


def cam_1d_cam() -> LineField:
    """A line with modulation: 0.01 M parameters."""
    return LineField(encoded=False)


def cam_1d_cam_pe() -> LineField:
    """A line with modulation and positional encoding: 0.02 M parameters."""
    return LineField(encoded=True)


def cam_1d_pe() -> LineField:
    """The baseline of a line with positional encoding, without modulation: 0.01 M parameters."""
    return LineField(encoded=True, modulated=False)


def cam_1d_noenc() -> LineField:
    """The baseline of a line without either: 0.01 M parameters."""
    return LineField(encoded=False, modulated=False)
