"""Complex operations in real numbers: which there are, and Fourier transforms as matrices of cosines and sines.

    forward   X_k = sum_j x_j exp(-2 pi i j k / n)         sign -1
    inverse   x_j = sum_k X_k exp(+2 pi i j k / n)         sign +1

`norm` is torch's: "backward" (its default) divides the inverse by n, "forward" the forward one, "ortho" both by the
square root of n.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

BILINEAR = {
    aten.mul.Tensor, aten.matmul.default, aten.mm.default, aten.bmm.default, aten.einsum.default, aten.linear.default,
}  # fmt: skip

STRUCTURAL = {
    aten.reshape.default, aten.view.default, aten.permute.default, aten.transpose.int, aten.movedim.int,
    aten.movedim.intlist, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.flatten.using_ints,
    aten.unflatten.int, aten.select.int, aten.slice.Tensor, aten.index_select.default, aten.narrow.default,
    aten.cat.default, aten.stack.default, aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default,
    aten.unbind.int, aten.expand.default, aten.repeat.default, aten.flip.default, aten.roll.default,
    aten.fft_fftshift.default, aten.fft_ifftshift.default, aten.sum.dim_IntList, aten.mean.dim, aten.clone.default,
    aten.contiguous.default, aten.alias.default, aten.detach.default, aten.resolve_conj.default,
    aten.slice_scatter.default, aten.select_scatter.default, aten.copy.default, aten.fill.Tensor, aten.where.self,
    aten.gather.default,
}  # fmt: skip
"""Operations that do to a complex tensor what they do to its two parts."""

FILLS: Mapping[Any, tuple[str, ...]] = {
    aten.pad.default: ("value",),
    aten.constant_pad_nd.default: ("value",),
    aten.masked_fill.Scalar: ("value",),
    aten.fill.Scalar: ("value",),
}
"""Operations that are structural where what they fill in is zero, and the argument that says so."""

ZEROS = {aten.zeros.default, aten.new_zeros.default, aten.zeros_like.default}

TRANSFORMS: Mapping[Any, tuple[str, int]] = {
    aten.fft_fft.default: ("complex", -1),
    aten.fft_fft2.default: ("complex", -1),
    aten.fft_fftn.default: ("complex", -1),
    aten.fft_ifft.default: ("complex", 1),
    aten.fft_ifft2.default: ("complex", 1),
    aten.fft_ifftn.default: ("complex", 1),
    aten.fft_rfft.default: ("from real", -1),
    aten.fft_rfft2.default: ("from real", -1),
    aten.fft_rfftn.default: ("from real", -1),
    aten.fft_ihfft.default: ("from real", 1),
    aten.fft_irfft.default: ("to real", 1),
    aten.fft_irfft2.default: ("to real", 1),
    aten.fft_irfftn.default: ("to real", 1),
    aten.fft_hfft.default: ("to real", -1),
}
"""Whether a transform is of complex numbers, of real ones or to real ones, and its sign."""


@dataclass(frozen=True)
class Transform:
    """One transform along one axis: of `length` values given, as many points as `points`, to `results` values.

    Values beyond `length` are zeros, those beyond `points` are left out.
    """

    sign: int
    length: int
    points: int
    norm: str = "backward"

    @property
    def scale(self) -> float:
        """What the sums are multiplied with."""
        if self.norm == "ortho":
            return 1 / math.sqrt(self.points)
        divided = (self.sign > 0) == (self.norm == "backward")
        return 1 / self.points if divided else 1.0


def axes(given: Mapping[str, Any], rank: int) -> tuple[list[int], list[int | None]]:
    """Which axes a transform asks for, counted from the front, and of how many points (None: as many as there are)."""
    if "n" in given:
        return [given["dim"] % rank], [given["n"]]
    sizes, dims = given["s"], given["dim"]
    if dims is None:
        dims = range(rank) if sizes is None else range(-len(sizes), 0)
    sizes = [None] * len(dims) if sizes is None else [None if size == -1 else size for size in sizes]
    return [dim % rank for dim in dims], sizes


def complex_matrices(of: Transform) -> tuple[Tensor, Tensor]:
    """Cosines and sines (points, length), such that re + i im becomes re C - s im S + i (im C + s re S), s the sign."""
    return _matrices(of, of.points, min(of.length, of.points), of.length)


def real_matrices(of: Transform) -> tuple[Tensor, Tensor]:
    """Those of a transform of real values (points // 2 + 1, length): the other half mirrors it."""
    return _matrices(of, of.points // 2 + 1, min(of.length, of.points), of.length)


def hermitian_matrices(of: Transform) -> tuple[Tensor, Tensor]:
    """Those of a transform to real values (points, length), from the half that its mirror image completes.

    re + i im becomes re C - s im S; what has a mirror image counts twice.
    """
    used = min(of.length, of.points // 2 + 1)
    cosines, sines = _matrices(of, of.points, used, of.length)
    twice = torch.full((of.length,), 2.0, dtype=torch.float64)
    twice[0] = 1
    if of.points % 2 == 0 and of.points // 2 < of.length:
        twice[of.points // 2] = 1
    return cosines * twice, sines * twice


def _matrices(of: Transform, rows: int, used: int, columns: int) -> tuple[Tensor, Tensor]:
    """scale cos(2 pi j k / n) and scale sin(2 pi j k / n) (rows, columns), zero from column `used` on."""
    # Whole turns are taken off in whole numbers, so an angle is exact to the last bit however long the axis.
    turns = torch.outer(torch.arange(rows), torch.arange(columns)) % of.points
    angles = turns.double() * (2 * math.pi / of.points)
    mask = (torch.arange(columns) < used).double() * of.scale
    return angles.cos() * mask, angles.sin() * mask
