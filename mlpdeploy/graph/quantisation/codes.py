"""The 8-bit numbers that operands are coded in: a value is its code times a scale.

INT8 has equal steps. FP8 (E4M3: 4 bits of exponent, 3 of mantissa) has steps that grow with the value, so a rounding
is off by a share of the value, down to the smallest normal code.
Sources: ONNX's QuantizeLinear; Micikevicius et al., FP8 Formats for Deep Learning (arXiv 2209.05433), table 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch


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

CODES: Mapping[str, Codes] = {codes.name: codes for codes in (INT8, FP8)}
"""By the precision's name."""


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
