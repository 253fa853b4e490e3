"""The blocks of MAXIM (see `zoo.maxim`): mixing over a grid and inside blocks, channel attention, cross gating.

Notation: `b` batch, `h w` pixels, `c` channels. A partition splits `h = (g f)` and `w = (k e)`; grid mixing fixes the
number of blocks (`g = k = size`) and contracts over them, block mixing fixes their size (`f = e = size`) and contracts
inside of them, with one matrix for all channels and all other positions:

    grid:   y[b,p,q,f,e,c] = sum over g,k of W[p,q,g,k] x[b,g,k,f,e,c] + bias[p,q]
    block:  y[b,g,k,p,q,c] = sum over f,e of W[p,q,f,e] x[b,g,k,f,e,c] + bias[p,q]

The names of the parameters are those of the authors' PyTorch port. GELU is the tanh form throughout.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gelu(x: Tensor) -> Tensor:
    """The tanh form of GELU, which JAX calls by that name."""
    return F.gelu(x, approximate="tanh")


def partition(x: Tensor, rows: int, columns: int) -> Tensor:
    """Pixels (b, h, w, c) to blocks of `rows` x `columns`: (b, blocks, pixels of a block, c)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // rows, rows, w // columns, columns, c).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(b, (h // rows) * (w // columns), rows * columns, c)


def assemble(x: Tensor, rows: int, columns: int, h: int, w: int) -> Tensor:
    """The inverse of `partition`, for images of `h` x `w`."""
    b, c = x.shape[0], x.shape[3]
    x = x.reshape(b, h // rows, w // columns, rows, columns, c).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h, w, c)


def mix(x: Tensor, layer: nn.Linear, axis: int) -> Tensor:
    """A linear layer along axis 1 or 2 of (b, blocks, pixels, c)."""
    return layer(x.transpose(axis, 3)).transpose(axis, 3)


class Norm(nn.Module):
    """LayerNorm over the last axis with JAX's epsilon and the port's names."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.zeros(dim))
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.gamma.shape, self.gamma, self.beta, 1e-6)


class SpatialGate(nn.Module):
    """u * (mixed(norm v) + 1) for the halves u | v of the channels; (b, blocks, pixels, 2c) to c channels."""

    def __init__(self, dim: int, tokens: int, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.intermediate_layernorm = Norm(dim)
        self.Dense_0 = nn.Linear(tokens, tokens)

    def forward(self, x: Tensor) -> Tensor:
        u, v = x.chunk(2, -1)
        return u * (mix(self.intermediate_layernorm(v), self.Dense_0, self.axis) + 1.0)


class GridGmlp(nn.Module):
    """x + a gMLP whose gate mixes over a grid of size x size blocks; (b, h, w, c) to the same."""

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.LayerNorm = Norm(dim)
        self.in_project = nn.Linear(dim, 2 * dim)
        self.GridGatingUnit = SpatialGate(dim, size * size, axis=1)
        self.out_project = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[1], x.shape[2]
        rows, columns = h // self.size, w // self.size
        x = partition(x, rows, columns)
        x = x + self.out_project(self.GridGatingUnit(gelu(self.in_project(self.LayerNorm(x)))))
        return assemble(x, rows, columns, h, w)


class BlockGmlp(nn.Module):
    """x + a gMLP whose gate mixes inside blocks of size x size pixels; (b, h, w, c) to the same."""

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.LayerNorm = Norm(dim)
        self.in_project = nn.Linear(dim, 2 * dim)
        self.BlockGatingUnit = SpatialGate(dim, size * size, axis=2)
        self.out_project = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[1], x.shape[2]
        x = partition(x, self.size, self.size)
        x = x + self.out_project(self.BlockGatingUnit(gelu(self.in_project(self.LayerNorm(x)))))
        return assemble(x, self.size, self.size, h, w)


class MultiAxisGmlp(nn.Module):
    """x + one half of the channels through the grid gMLP, the other through the block gMLP; (b, h, w, c)."""

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.LayerNorm_in = Norm(dim)
        self.in_project = nn.Linear(dim, 2 * dim)
        self.GridGmlpLayer = GridGmlp(dim, size)
        self.BlockGmlpLayer = BlockGmlp(dim, size)
        self.out_project = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        u, v = gelu(self.in_project(self.LayerNorm_in(x))).chunk(2, -1)
        return x + self.out_project(torch.cat([self.GridGmlpLayer(u), self.BlockGmlpLayer(v)], -1))


class ChannelAttention(nn.Module):
    """Every channel times a weight in (0, 1) from the means of all channels; (b, c, h, w) to the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.Conv_0 = nn.Conv2d(dim, dim // 4, 1)
        self.Conv_1 = nn.Conv2d(dim // 4, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.Conv_1(F.relu(self.Conv_0(x.mean((2, 3), keepdim=True)))))


class ConvolutionalAttention(nn.Module):
    """x + attention(conv2(leaky_relu(conv1(norm x)))); (b, h, w, c) to the same. The authors' RCAB."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.LayerNorm = Norm(dim)
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)
        self.channel_attention = ChannelAttention(dim)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.conv1(self.LayerNorm(x).permute(0, 3, 1, 2)), 0.2)
        return x + self.channel_attention(self.conv2(y)).permute(0, 2, 3, 1)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, on the last axis."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.Dense_0 = nn.Linear(dim, dim)
        self.Dense_1 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.Dense_1(gelu(self.Dense_0(x)))


class DenseAttention(nn.Module):
    """x + attention(mlp(norm x)); (b, h, w, c) to the same. The authors' RDCAB."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.LayerNorm = Norm(dim)
        self.channel_mixing = Mlp(dim)
        self.channel_attention = ChannelAttention(dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.channel_mixing(self.LayerNorm(x)).permute(0, 3, 1, 2)
        return x + self.channel_attention(y).permute(0, 2, 3, 1)


class SpatialWeights(nn.Module):
    """Gating weights: half of the channels mixed over the grid, half inside blocks; (b, h, w, c) to the same."""

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.LayerNorm_in = Norm(dim)
        self.in_project = nn.Linear(dim, 2 * dim)
        self.Dense_0 = nn.Linear(size * size, size * size)
        self.Dense_1 = nn.Linear(size * size, size * size)
        self.out_project = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        h, w, size = x.shape[1], x.shape[2], self.size
        rows, columns = h // size, w // size
        u, v = gelu(self.in_project(self.LayerNorm_in(x))).chunk(2, -1)
        u = assemble(mix(partition(u, rows, columns), self.Dense_0, 1), rows, columns, h, w)
        v = assemble(mix(partition(v, size, size), self.Dense_1, 2), size, size, h, w)
        return self.out_project(torch.cat([u, v], -1))


class CrossGating(nn.Module):
    """x and y, each gated by spatial weights of the other; (b, c', h, w) and (b, c, h, w) to both with c channels.

    With `below` channels, y comes at half the height and width and is enlarged first.
    """

    def __init__(self, inputs: int, dim: int, size: int, below: int | None = None) -> None:
        super().__init__()
        self.below = below
        if below is not None:
            self.ConvTranspose_0 = nn.ConvTranspose2d(below, dim, 2, stride=2)
        self.Conv_0 = nn.Conv2d(inputs, dim, 1)
        self.Conv_1 = nn.Conv2d(dim, dim, 1)
        self.LayerNorm_x, self.LayerNorm_y = Norm(dim), Norm(dim)
        self.in_project_x, self.in_project_y = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.SplitHeadMultiAxisGating_x = SpatialWeights(dim, size)
        self.SplitHeadMultiAxisGating_y = SpatialWeights(dim, size)
        self.out_project_x, self.out_project_y = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self.below is not None:
            y = self.ConvTranspose_0(y)
        x, y = self.Conv_0(x).permute(0, 2, 3, 1), self.Conv_1(y).permute(0, 2, 3, 1)
        from_x = gelu(self.in_project_x(self.LayerNorm_x(x)))
        from_y = gelu(self.in_project_y(self.LayerNorm_y(y)))
        y = y + self.out_project_y(from_y * self.SplitHeadMultiAxisGating_x(from_x))
        x = x + self.out_project_x(from_x * self.SplitHeadMultiAxisGating_y(from_y)) + y
        return x.permute(0, 3, 1, 2), y.permute(0, 3, 1, 2)
