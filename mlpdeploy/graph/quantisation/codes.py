"""The numbers of 8 and 4 bits that operands are coded in: a value is its code times a scale.

INT8 has equal steps. FP8 (E4M3: 4 bits of exponent, 3 of mantissa) has steps that grow with the value, so a rounding
is off by a share of the value, down to the smallest normal code. NVFP4 has codes of 4 bits (E2M1: 2 bits of exponent,
1 of mantissa), an FP8 scale for each 16 of them, and an FP32 scale for all of a tensor.
Sources: ONNX's QuantizeLinear; Micikevicius et al., FP8 Formats for Deep Learning (arXiv 2209.05433), table 1; NVIDIA,
Pretraining Large Language Models with NVFP4 (arXiv 2509.25149), section 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from mlpdeploy.graph.custom_ops import FP4_BLOCK, FP4_LARGEST, to_fp4, to_fp8


@dataclass(frozen=True)
class Codes:
    """`largest` is the magnitude of the largest code that is used: as many lie below zero as above.

    `step` is that between the smallest codes, and `share` the mean square of the error of a larger one, over the square
    of its value (0: its steps are all equal).
    """

    name: str
    dtype: torch.dtype
    largest: float
    step: float
    share: float

    def rounded(self, exact: torch.Tensor) -> torch.Tensor:
        """The codes of values in units of their scale: to nearest, ties to even, saturated at the largest."""
        whole = exact if self.dtype.is_floating_point else exact.round()
        return whole.clamp(-self.largest, self.largest).to(self.dtype)

    def levels(self, bins: int) -> np.ndarray:
        """Which magnitude, numbered from 0, stands for each of `bins` equal bins from 0 to the largest code."""
        if not self.dtype.is_floating_point:
            return np.arange(bins) * (int(self.largest) + 1) // bins
        centres = (torch.arange(bins, dtype=torch.float64) + 0.5) * (self.largest / bins)
        return self.rounded(centres).view(torch.uint8).numpy().astype(np.int64)


INT8 = Codes("int8", torch.int8, 127.0, 1.0, 0.0)
FP8 = Codes("fp8", torch.float8_e4m3fn, 448.0, 2.0**-9, 2.0**-6 / 12 * 0.75 / (2 * math.log(2)))
"""A value of 2**e to 2**(e + 1) has steps of 2**(e - 3); `share` is of values whose logarithms are spread evenly."""

NVFP4 = Codes("nvfp4", FP8.dtype, FP4_LARGEST * FP8.largest, 0.5, 2.0**-2 / 12 * 0.75 / (2 * math.log(2)))
"""`largest` is that of a code and its block's scale together; codes are made in blocks, by `coded_fp4`. Here each has a
byte of its own, since E2M1 is a part of E4M3."""

CODES: Mapping[str, Codes] = {codes.name: codes for codes in (INT8, FP8, NVFP4)}
"""By the precision's name."""

INT4 = Codes("int4", torch.int8, 7.0, 1.0, 0.0)
"""Of weights alone, each of two in a byte of the file; here each has a byte of its own."""
BLOCKS = (128, 64)
"""Input channels that share a scale of INT4: as many as divide those of a weight. TensorRT takes these two."""
NARROWED = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Shares of a block's largest magnitude that may get the largest code: what is beyond saturates, the rest is finer."""


def channel_scales(matrix: torch.Tensor, axis: int, dtype: torch.dtype, codes: Codes) -> torch.Tensor:
    """The scale of each output channel, as a number of `dtype`: its largest magnitude gets the largest code."""
    others = [dim for dim in range(matrix.dim()) if dim != axis]
    return storable(matrix.double().abs().amax(others) / codes.largest, dtype)


def storable(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`scale` as a number of `dtype` that is not smaller, and not zero: a channel of zeros has the code 0 anyway."""
    smallest = torch.finfo(dtype).smallest_normal if dtype is not torch.float16 else 2.0**-24
    rounded = scale.to(dtype)
    up = torch.nextafter(rounded, torch.full_like(rounded, math.inf))
    return torch.where(rounded.double() < scale.double(), up, rounded).clamp(min=smallest)


def coded(matrix: torch.Tensor, scales: torch.Tensor, axis: int, codes: Codes) -> torch.Tensor:
    """The codes of a weight whose scales run along `axis`."""
    shape = [-1 if dim == axis else 1 for dim in range(matrix.dim())]
    return codes.rounded(matrix.double() / scales.double().reshape(shape))


def block_of(inputs: int) -> int | None:
    """How many of a weight's input channels share a scale; None where no block divides them."""
    return next((block for block in BLOCKS if inputs % block == 0), None)


def coded_blocks(matrix: torch.Tensor, axis: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """INT4 codes of a weight (N, K) or (K, N), and a scale in `dtype` for each block along `axis`, that of K.

    Of NARROWED, each block has the share with the least squared error.
    """
    rows = matrix.double().movedim(axis, -1)
    blocks = rows.reshape(len(rows), -1, block_of(rows.shape[-1]) or rows.shape[-1])
    largest = blocks.abs().amax(-1) / INT4.largest
    scales = torch.stack([storable(share * largest, dtype) for share in NARROWED])
    exact = scales.double()[..., None]
    codes = INT4.rounded(blocks / exact)
    best = ((codes * exact - blocks) ** 2).sum(-1).argmin(0, keepdim=True)
    chosen = codes.take_along_dim(best[..., None], 0)[0].reshape(rows.shape)
    return tuple(one.movedim(-1, axis).contiguous() for one in (chosen, scales.take_along_dim(best, 0)[0]))  # type: ignore[return-value]


def coded_fp4(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """FP4 codes (N, K) of a weight (N, K), an FP8 scale (N, K / 16) for each block, and an FP32 scale for all of it.

    Of NARROWED, each block has the share with the least squared error.
    """
    blocks = matrix.reshape(len(matrix), -1, FP4_BLOCK)
    largest = blocks.abs().amax(-1) / FP4_LARGEST
    scale = storable(largest.max().double() / FP8.largest, torch.float32)
    best = torch.full_like(largest, math.inf)
    codes, scales = torch.zeros_like(blocks), torch.zeros_like(largest)
    for share in NARROWED:
        told = to_fp8(share * largest / scale).to(matrix.dtype)
        steps = (told * scale)[..., None]
        found = to_fp4(blocks * torch.where(steps > 0, 1 / steps, 0.0))
        error = ((found * steps - blocks) ** 2).sum(-1)
        better = error < best
        best, scales = torch.where(better, error, best), torch.where(better, told, scales)
        codes = torch.where(better[..., None], found, codes)
    return codes.reshape(matrix.shape).to(FP8.dtype), scales.to(FP8.dtype), scale
