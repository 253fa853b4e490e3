"""The neural fields of FreSh (frequency shifting, Kania et al. 2024, arXiv 2410.05779), after their training.

FreSh chooses frequencies before training and changes nothing afterwards. Its networks map points in [-1, 1]^2 to RGB:

    SIREN    h = sin(W (omega h) + b),                    out = W (omega h) + b
    Fourier  h = relu(W h + b),                           out = W h + b,            first h = (cos, sin)(2 pi B p)
    FINER    h = sin(omega (|u| + 1) u), u = W h + b,     out = W h + b
    WIRE     h = exp(i omega u - |s u|^2), u = W h + b,   out = Re(W h + b) / 2 + 1/2,    all but p complex

omega multiplies what goes into a layer of SIREN, not what comes out. The complex numbers of WIRE are pairs of real
ones here, and its complex weights, which the checkpoints hold, become real matrices of twice the size on the way. The
names of the parameters are those of the authors' networks; in their checkpoints each network is the part `net`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN, LAYERS, OMEGA = 256, 3, 30.0
WIRE_HIDDEN, WIRE_OMEGA, WIRE_SCALE = 181, 20.0, 10.0  # a complex number counts for two: 256 / sqrt(2)


def read(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict without the prefix of the module that the authors train a network in."""
    return {key.removeprefix("net."): value for key, value in state.items()}, {}


class Affine(nn.Module):
    """A linear layer whose weights start uniformly within `bound`: the sines of any others amplify every error."""

    def __init__(self, width: int, out: int, bound: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out).uniform_(-1, 1) / math.sqrt(width))
        self.deviation = bound / math.sqrt(3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def _bound(width: int) -> float:
    return math.sqrt(6 / width) / OMEGA


class SineLayer(nn.Module):
    """sin(W (omega x) + b), or without the sine where it is the last; (..., width) to (..., out)."""

    def __init__(self, width: int, out: int, bound: float, last: bool = False) -> None:
        super().__init__()
        self.linear, self.last = Affine(width, out, bound), last

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(OMEGA * x)
        return x if self.last else x.sin()


class FinerLayer(nn.Module):
    """sin(omega (|u| + 1) u) of u = W x + b; (..., width) to (..., out)."""

    def __init__(self, width: int, out: int, bound: float) -> None:
        super().__init__()
        self.linear = Affine(width, out, bound)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return (OMEGA * (x.abs() + 1) * x).sin()


class GaussianEncoding(nn.Module):
    """Cosines, then sines, of fixed random projections: points (..., 2) to (..., HIDDEN)."""

    def __init__(self) -> None:
        super().__init__()
        self.b: Tensor
        self.register_buffer("b", torch.randn(HIDDEN // 2, 2))

    def forward(self, points: Tensor) -> Tensor:
        angles = points @ (2 * math.pi * self.b).mT
        return torch.cat([angles.cos(), angles.sin()], -1)


class ComplexLinear(nn.Module):
    """A complex linear layer on pairs: real parts, then imaginary ones, (..., 2 * width) to (..., 2 * out)."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width) / WIRE_OMEGA
        self.weight = nn.Parameter(torch.complex(*torch.empty(2, out, width).uniform_(-bound, bound)))
        self.bias = nn.Parameter(torch.complex(*torch.empty(2, out).uniform_(-bound, bound)))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (torch.view_as_real(part).to(x.dtype) for part in (self.weight, self.bias))
        real, imaginary = weight.unbind(-1)
        rows = torch.cat([torch.cat([real, -imaginary], 1), torch.cat([imaginary, real], 1)])
        return F.linear(x, rows, bias.mT.flatten())


class GaborLayer(nn.Module):
    """exp(i omega u - |s u|^2) of u = W x + b, complex numbers in pairs; the first layer takes real points."""

    def __init__(self, width: int, out: int, first: bool = False) -> None:
        super().__init__()
        self.omega_0 = nn.Parameter(WIRE_OMEGA * torch.ones(1), requires_grad=False)
        self.scale_0 = nn.Parameter(WIRE_SCALE * torch.ones(1), requires_grad=False)
        self.linear = nn.Linear(width, out) if first else ComplexLinear(width, out)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        if self.first:
            real, decay = x, (self.scale_0 * x).square()
        else:
            real, imaginary = x.chunk(2, -1)
            decay = (self.scale_0 * real).square() + (self.scale_0 * imaginary).square() + self.omega_0 * imaginary
        angle, size = self.omega_0 * real, (-decay).exp()
        return torch.cat([size * angle.cos(), size * angle.sin()], -1)


class RealPart(nn.Module):
    """The real parts of pairs (..., 2 * c), halved, about 1/2: (..., c)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.chunk(2, -1)[0] / 2 + 0.5


class Field(nn.Module):
    """The layers of a network one after the other: points (..., 2) in [-1, 1] to RGB (..., 3)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self._net = nn.Sequential(*layers)

    def forward(self, points: Tensor) -> Tensor:
        return self._net(points)


def fresh_siren() -> Field:
    """SIREN: 0.20 M parameters."""
    hidden = (SineLayer(HIDDEN, HIDDEN, _bound(HIDDEN)) for _ in range(LAYERS))
    return Field(SineLayer(2, HIDDEN, 1 / 2), *hidden, SineLayer(HIDDEN, 3, _bound(HIDDEN), last=True))


def fresh_fourier() -> Field:
    """Fourier features and ReLU: 0.20 M parameters."""
    hidden = (layer for _ in range(LAYERS) for layer in (nn.Linear(HIDDEN, HIDDEN), nn.ReLU()))
    return Field(GaussianEncoding(), *hidden, nn.Linear(HIDDEN, 3))


def fresh_finer() -> Field:
    """FINER: 0.20 M parameters."""
    hidden = (FinerLayer(HIDDEN, HIDDEN, _bound(HIDDEN)) for _ in range(LAYERS))
    return Field(FinerLayer(2, HIDDEN, 1 / 2), *hidden, Affine(HIDDEN, 3, _bound(HIDDEN)))


def fresh_wire() -> Field:
    """WIRE: 0.10 M parameters, counting a complex number as one."""
    hidden = (GaborLayer(WIRE_HIDDEN, WIRE_HIDDEN) for _ in range(LAYERS))
    return Field(GaborLayer(2, WIRE_HIDDEN, first=True), *hidden, ComplexLinear(WIRE_HIDDEN, 3), RealPart())
