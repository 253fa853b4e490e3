"""What formulas of networks are written with: the tensors of a checkpoint by key, and arithmetic without modules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Keys:
    """The tensors below one path of a checkpoint: `keys / "blocks" / 3` is deeper, `keys["weight"]` a tensor."""

    state: Mapping[str, Tensor]
    path: str = ""

    def __truediv__(self, part: str | int) -> Keys:
        return Keys(self.state, f"{self.path}{part}.")

    def __getitem__(self, name: str) -> Tensor:
        return self.state[self.path + name]

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of that name, or anything below it."""
        path = self.path + name
        return any(key == path or key.startswith(f"{path}.") for key in self.state)

    def each(self) -> list[Keys]:
        """What is numbered 0, 1, 2 and so on here, in order, numbers left out passed over."""
        numbers = {key[len(self.path) :].partition(".")[0] for key in self.state if key.startswith(self.path)}
        return [self / number for number in sorted(map(int, filter(str.isdigit, numbers)))]

    def linear(self, x: Tensor) -> Tensor:
        """W x + b over the last axis; a kernel of 1x1 counts as W."""
        weight = self["weight"]
        result = torch.einsum("...i,oi->...o", x, weight.reshape(weight.shape[0], -1))
        bias = self._bias()
        return result if bias is None else result + bias

    def conv(self, x: Tensor, stride: int = 1, padding: int | Sequence[int] = 0, groups: int = 1) -> Tensor:
        """A two-dimensional convolution, channels first."""
        return F.conv2d(x, self["weight"], self._bias(), stride, padding, 1, groups)

    def _bias(self) -> Tensor | None:
        return self.state.get(f"{self.path}bias")

    def batch_norm(self, x: Tensor, axis: int = 1, eps: float = 1e-5) -> Tensor:
        """(x - mean) / sqrt(var + eps) * weight + bias with the statistics of the checkpoint, along `axis`."""
        shape = [-1 if one == axis else 1 for one in range(x.dim())]
        mean, var, weight, bias = (
            self[name].reshape(shape) for name in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + eps) * weight + bias

    def layer_norm(self, x: Tensor, eps: float) -> Tensor:
        """Over the last axis."""
        return standardised(x, -1, eps) * self["weight"] + self["bias"]

    def group_norm(self, x: Tensor, eps: float = 1e-5) -> Tensor:
        """Of each image over all but the batch: one group; channels first."""
        shape = [1, -1, *(1 for _ in x.shape[2:])]
        dims = tuple(range(1, x.dim()))
        return standardised(x, dims, eps) * self["weight"].reshape(shape) + self["bias"].reshape(shape)


def standardised(x: Tensor, dims: int | tuple[int, ...], eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps), both over `dims`; the variance divides by the number of elements."""
    centred = x - x.mean(dims, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(dims, keepdim=True) + eps)


def gelu(x: Tensor) -> Tensor:
    """x times the share of a normal distribution below it."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def mlp(at: Keys, x: Tensor) -> Tensor:
    """Two linear layers over the last axis, a GELU between them."""
    return (at / "fc2").linear(gelu((at / "fc1").linear(x)))


def gelu_tanh(x: Tensor) -> Tensor:
    """The approximation that JAX uses."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def relu(x: Tensor) -> Tensor:
    """The larger of x and 0."""
    return torch.where(x > 0, x, torch.zeros_like(x))


def softmax(x: Tensor, dim: int) -> Tensor:
    """exp x over its sum."""
    raised = torch.exp(x - x.amax(dim, keepdim=True))
    return raised / raised.sum(dim, keepdim=True)


def shares(logits: Tensor) -> list[Tensor]:
    """Of three branches, from (b, 3 c) whose fastest axis is the branch: what each weighs, (b, c)."""
    b, rows = logits.shape
    return list(softmax(logits.reshape(b, rows // 3, 3), 2).unbind(2))


def patches(at: Keys, image: Tensor) -> Tensor:
    """Projected patches (b, n, c) of images (b, 3, h, w), row by row; they do not overlap."""
    side = at["weight"].shape[-1]
    return at.conv(image, side).flatten(2).mT


def merged(x: Tensor) -> Tensor:
    """(b, c, h, w) to (b, 4c, h/2, w/2): even rows and columns, odd rows, odd columns, odd both, one after another."""
    return torch.cat([x[:, :, i::2, j::2] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))], 1)
