"""What the test of a rule brings, EXAMPLE and NEAR_MISSES, and the networks that several of these tests use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpdeploy.graph.rewrite import Rewritten
from mlpdeploy.zoo.hire_mlp import HireBlock
from mlpdeploy.zoo.raft_mlp import RaftMLP, Stage
from mlpdeploy.zoo.swinchex import SwinBlock
from mlpdeploy.zoo.vip import WeightedPermuteMLP
from tests.graph.proof import BATCHES

Build = Callable[[], nn.Module]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """A network for an input of `shape` (without the batch), and how often the rule fires in it."""

    build: Build
    shape: Shape
    fires: int


@dataclass(frozen=True)
class NearMiss:
    """A network that resembles the rule's pattern and must stay as it is: the rule fires 0 times.

    `reasons`: why it refuses, in order; none where it sees no pattern. `others`: shapes of further inputs. `batches`:
    the sizes at which the results are compared. `holds`: what else must be so after the rules. `twice`: whether what
    the rules make of it is a near-miss as well, as it nearly always is.
    """

    build: Build
    shape: Shape
    reasons: tuple[str, ...] = ()
    others: tuple[Shape, ...] = ()
    batches: tuple[int, ...] = BATCHES
    holds: Callable[[Rewritten], bool] | None = None
    twice: bool = True


class Net(nn.Module):
    """Some modules and parameters, and a function of them and the inputs."""

    def __init__(self, run: Callable[..., Tensor | tuple[Tensor, ...]], **parts: nn.Module | Shape) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part if isinstance(part, nn.Module) else nn.Parameter(torch.empty(part)))

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        return self.run(self, x) if other is None else self.run(self, x, other)


class Layers(nn.Module):
    """`run` on layers over T tokens and over C channels, and weights of the shapes given."""

    T, C = 6, 4

    def __init__(self, run: Callable[[Layers, Tensor], Tensor | tuple[Tensor, ...]], *shapes: Shape) -> None:
        super().__init__()
        self.run = run
        self.tokens, self.channels = nn.Linear(self.T, self.T), nn.Linear(self.C, self.C)
        self.norm, self.across = nn.LayerNorm(self.C), nn.LayerNorm(self.T)
        self.weights = nn.ParameterList(torch.empty(shape) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.run(self, x)


class Tokens(nn.Module):
    """Token mixing by einsum, dropout, an affine in front and a LayerScale behind."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.channels = nn.Parameter(torch.empty(6, 6)), nn.Linear(4, 4)
        self.norm, self.scale, self.shift = nn.LayerNorm(4), nn.Parameter(torch.empty(4)), nn.Parameter(torch.empty(4))

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.einsum("ut,btc->buc", self.tokens, self.norm(x))
        x = x + F.dropout(mixed, 0.1, self.training)
        return x + self.scale * self.channels(self.norm(x) * self.scale + self.shift)


class Gated(nn.Module):
    """A projection whose result is split, as it is (GLU) or activated (gMLP)."""

    def __init__(self, activated: bool = False) -> None:
        super().__init__()
        self.up, self.down, self.activated = nn.Linear(4, 6), nn.Linear(3, 4), activated

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        u, v = (F.gelu(y) if self.activated else y).chunk(2, -1)
        return self.down(u * v)


class Branches(nn.Module):
    """Two Permute-MLP blocks with split attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(16), WeightedPermuteMLP(16, 4), WeightedPermuteMLP(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(self.norm(x))
        return x + self.second(self.norm(x))


class Neighbours(nn.Module):
    """Pooling less its input behind a normalisation, scaled, as a residual (PoolFormer)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.scale = nn.GroupNorm(1, 4), nn.Parameter(torch.empty(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(x)
        return x + self.scale * (F.avg_pool2d(z, 3, 1, 1, count_include_pad=False) - z)


class Spectra(nn.Module):
    """Token mixing by a filter in the frequencies (GFNet), of a value that is gated by its own mean."""

    def __init__(self) -> None:
        super().__init__()
        self.filter, self.gate = nn.Parameter(torch.empty(4, 4, 2)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        gated = x * self.gate(x.mean(1, keepdim=True)).expand_as(x)
        return torch.fft.irfft(torch.fft.rfft(gated, dim=1) * torch.view_as_complex(self.filter), 6, dim=1)


class Pyramid(nn.Module):
    """Half the size, twice: by the largest and the mean of windows that are not whole, and smoothed."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(x, 3, 2, ceil_mode=True) + F.avg_pool2d(x, 3, 2, ceil_mode=True)
        return pooled + F.interpolate(self.mix(x), (3, 4), mode="bilinear", antialias=True)


class Attention(nn.Module):
    """Attention in windows of 2x2 tokens, the three parts of one projection taken as `take` says."""

    def __init__(self, take: str = "unbind") -> None:
        super().__init__()
        self.take, self.qkv, self.proj = take, nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        windows = x.reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b * h * w // 4, 4, c)
        parts = self.qkv(windows).reshape(b * h * w // 4, 4, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        if self.take == "list":
            return torch.stack(list(parts.unbind(0)), -1)
        q, k, v = (parts[0], parts[1], parts[2]) if self.take == "select" else parts.unbind(0)
        y = ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(b * h * w // 4, 4, c)
        y = self.proj(y).reshape(b, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5)
        return y.reshape(b, h, w, c)


def regions() -> nn.Module:
    """Regions of a map that are shifted and mixed (Hire-MLP)."""
    return HireBlock(8, 3, 1)


def rafts() -> nn.Module:
    """One RaftMLP block behind patches of two sizes."""
    return RaftMLP([Stage(1, 6, 2, 2, (2, 4))], image_size=8, trained=8, num_classes=3)


def windows() -> nn.Module:
    """Attention in displaced windows (Swin)."""
    return SwinBlock(4, grid=4, heads=2, window=2, shift=1, mlp_ratio=2)
