"""One convolution of groups in numbers, and how it can be spelled."""

from __future__ import annotations

import math
from dataclasses import dataclass

SUMS = "sums"
"""Shifted maps, each times a number for every channel, in one sum: a kernel that Inductor generates."""
PRODUCTS = "products"
"""A product of matrices for each group, of what every place of the result reads."""

MOST_TAPS = 32
"""Numbers of a kernel for one output up to which a sum is tried: each is an operation in the graph."""
LEAST_DEPTH = 16
"""Numbers that a product of matrices sums at least: what tensor cores multiply at once."""


@dataclass(frozen=True)
class Problem:
    """A convolution with everything but the batch: `channels` of a map of `size` to `outputs`, in `groups`."""

    channels: int
    outputs: int
    groups: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    precision: str
    bias: bool = False

    @property
    def depth(self) -> int:
        """How many products are summed for a number of the result."""
        return self.channels // self.groups * math.prod(self.kernel)

    def shape_class(self, batch: int) -> str:
        """Convolutions that share a spelling: equal but for the batch, which counts in powers of two."""
        sizes = (self.size, self.kernel, self.stride, self.padding, self.dilation)
        told = " ".join("x".join(map(str, one)) for one in sizes)
        widths = f"c{self.channels} n{self.outputs} g{self.groups}"
        return f"{self.precision} conv batch {1 << (batch - 1).bit_length()} {widths} {told}{' bias' * self.bias}"

    def default(self, batch: int, sm: int) -> str | None:
        """The spelling where nothing was measured."""
        return self.candidates(sm)[0]

    def candidates(self, sm: int) -> tuple[str, ...]:
        """The spellings worth measuring; one at least."""
        products = self.depth >= LEAST_DEPTH
        sums = self.depth <= MOST_TAPS
        return (SUMS,) * sums + (PRODUCTS,) * products

    def shortlist(self, batch: int, sm: int) -> tuple[str, ...]:
        """See the protocol: all of them."""
        return self.candidates(sm)

    def variants(self, config: object, sm: int) -> tuple[str, ...]:
        """See the protocol: none."""
        return ()
