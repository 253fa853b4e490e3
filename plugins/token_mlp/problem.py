"""One MLP over tokens in numbers, how the kernel can be configured for it, and what is used where nothing was measured.

A configuration's rows are channels, its columns the tokens that come out, and its depth is the hidden tokens of a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from ..common.configurations import (
    BYTES,
    GELUS,
    INDEXABLE,
    POINTERS,
    Config,
    alike,
    at_most,
    filling,
    holding,
    leading,
    nearest,
    pipelines,
)

_TILES = ((128, 64), (128, 32), (64, 64), (64, 32), (32, 64), (32, 32), (32, 16), (16, 32), (16, 16))
"""Channels of a block and hidden tokens of a step that are tried, largest first."""

_SUMS = {"fp16": 40 << 10, "bf16": 40 << 10, "tf32": 40 << 10, "fp32": 9 << 10}
_SUMS_OF_FOUR = {"fp16": 20 << 10, "bf16": 20 << 10, "tf32": 12 << 10, "fp32": 0}
"""Sums of both products that eight warps keep in their registers beside what they multiply, and four (0: none)."""

_BARRIERS = 1 << 10
"""Bytes of shared memory beside the operands, at most."""


@dataclass(frozen=True)
class Problem:
    """residual + down @ gelu(up @ x + up_bias) + down_bias, with everything but the batch.

    `n` tokens of `c` channels become `h` hidden ones and then `m`. `up_row`, `down_row`: how long the rows of a matrix
    are where zeros make them longer; 0 where none do. `wide`: the addresses need 64 bits.
    """

    n: int
    h: int
    m: int
    c: int
    precision: str
    gelu: str
    up_bias: bool = False
    down_bias: bool = False
    residual: bool = False
    up_row: int = 0
    down_row: int = 0
    wide: bool = False

    def __post_init__(self) -> None:
        if min(self.n, self.h, self.m, self.c) < 1 or self.precision not in POINTERS:
            raise ValueError(f"sizes must be positive and the precision one of {', '.join(POINTERS)}: {self}")
        if self.gelu not in GELUS[1:]:
            raise ValueError(f"GELU is by erf or by tanh, not by {self.gelu}")

    def for_batch(self, largest: int) -> Problem:
        """The same with addresses wide enough for batches up to `largest`."""
        return replace(self, wide=largest * max(self.n, self.m) * self.c >= INDEXABLE)

    def tiles(self, config: Config, batch: Any) -> Any:
        """How many blocks a launch has: symbolic where `batch` is."""
        return batch * math.ceil(self.c / config.block_m)

    def shared(self, config: Config) -> int:
        """Bytes of shared memory that a block has at most: its tile of x, and of both matrices the steps in flight."""
        step = config.block_k * (holding(self.n) + config.block_n)
        return BYTES[self.precision] * (config.block_m * holding(self.n) + config.stages * step) + _BARRIERS

    def constants(self, config: Config) -> dict[str, Any]:
        """The kernel's compile-time arguments."""
        return {
            "N": self.n,
            "H": self.h,
            "M": self.m,
            "C": self.c,
            "UP_ROW": self.up_row or self.n,
            "DOWN_ROW": self.down_row or self.h,
            "GELU": self.gelu,
            "PRECISION": "tf32" if self.precision == "tf32" else "ieee",
            "WIDE": self.wide,
            "BLOCK_C": config.block_m,
            "BLOCK_N": holding(self.n),
            "BLOCK_M": config.block_n,
            "BLOCK_H": config.block_k,
        }

    def shape_class(self, batch: int) -> str:
        """MLPs that share a configuration: equal but for the batch, which counts in powers of two."""
        flags = [name for name in ("up_bias", "down_bias", "residual", "wide") if getattr(self, name)]
        flags += [f"{name} {row}" for name in ("up_row", "down_row") if (row := getattr(self, name))]
        images = 1 << (batch - 1).bit_length()
        sizes = f"n{self.n} h{self.h} m{self.m} c{self.c}"
        return " ".join(["token mlp", self.precision, f"images {images}", sizes, f"gelu {self.gelu}", *flags])

    def candidates(self, sm: int) -> tuple[Config, ...]:
        """The configurations that fit, largest tiles first: none where a block has too little shared memory."""
        found: dict[Config, None] = {}
        for tall, deep in _TILES:
            block_m, block_n, block_k = at_most(tall, self.c), holding(self.m), at_most(deep, self.h)
            if (sums := block_m * (block_n + block_k)) > _SUMS[self.precision]:
                continue
            for warps in (8, 4) if sums <= _SUMS_OF_FOUR[self.precision] else (8,):
                deepest_first = [Config(block_m, block_n, block_k, warps, stages) for stages in (3, 2)]
                found |= dict.fromkeys(pipelines(deepest_first, self.shared, sm))
        return tuple(found)

    def default(self, batch: int, sm: int) -> Config | None:
        """The configuration where nothing was measured: the largest tiles that give every multiprocessor one."""
        found = self.candidates(sm)
        return filling(found, lambda config: self.tiles(config, batch), sm) if found else None

    def shortlist(self, batch: int, sm: int, count: int = 8) -> tuple[Config, ...]:
        """The tiles to measure at one batch, in one configuration each: whose number is nearest to the default's."""
        found, chosen = leading(self.candidates(sm)), self.default(batch, sm)
        return () if chosen is None else nearest(found, lambda config: self.tiles(config, batch), chosen, count)

    def variants(self, config: Config, sm: int) -> tuple[Config, ...]:
        """See the protocol."""
        return alike(config, self.candidates(sm))


def least_shared(n: int, m: int) -> int:
    """Bytes of shared memory that the smallest block has for `n` tokens which become `m`, in a precision of 16 bits."""
    return Problem(n, 1, m, 1, "fp16", "erf").shared(Config(16, holding(m), 16, 4, 2))
