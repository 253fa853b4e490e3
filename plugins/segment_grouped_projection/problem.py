"""One projection in numbers, how the kernel can be configured for it, and what is used where nothing was measured."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass, replace
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

_TILES = (
    (128, 256), (128, 128), (256, 64), (64, 256), (128, 64), (64, 128), (64, 64), (32, 64), (32, 32), (16, 32),
)  # fmt: skip
"""Rows and columns of the tiles that are tried, largest first."""


@dataclass(frozen=True)
class Problem:
    """y[b, k, q, t, o] = sum over p, s of x[b, p, q, s, o] * weight[(k t), (p s)], with everything but the batch.

    `columns_first`: the weight is stored as (P*S, K*T), as ONNX has it. `channels` and `share` belong to the scale: its
    channels (0: there is none) and how many batch entries are one image. `wide`: the addresses need 64 bits. `pitch`:
    how long the rows of the weight are where zeros make them longer; 0 where none do.
    """

    p: int
    q: int
    s: int
    o: int
    k: int
    t: int
    precision: str
    columns_first: bool = False
    bias: bool = False
    gelu: str | None = None
    accumulate: bool = False
    channels: int = 0
    share: int = 1
    wide: bool = False
    pitch: int = 0

    def __post_init__(self) -> None:
        sizes = (self.p, self.q, self.s, self.o, self.k, self.t, self.share)
        if min(sizes) < 1 or self.precision not in POINTERS:
            raise ValueError(f"sizes must be positive and the precision one of {', '.join(POINTERS)}: {self}")
        if self.gelu not in GELUS:
            raise ValueError(f"GELU is by erf or by tanh, not by {self.gelu}")
        if self.channels and (self.channels % (self.t * self.o) or self.q % (self.channels // (self.t * self.o))):
            raise ValueError(f"a scale of {self.channels} channels does not fit q={self.q}, t={self.t}, o={self.o}")

    @property
    def rows(self) -> int:
        """Rows of the matrix product that one batch entry gives."""
        return self.q * self.o

    @property
    def columns(self) -> int:
        """Columns of the matrix product."""
        return self.k * self.t

    @property
    def depth(self) -> int:
        """Length of the contraction."""
        return self.p * self.s

    def for_batch(self, largest: int) -> Problem:
        """The same with addresses wide enough for batches up to `largest`."""
        elements = largest * self.rows * max(self.depth, self.columns)
        return replace(self, wide=elements >= INDEXABLE)

    def tiles(self, config: Config, batch: Any) -> Any:
        """How many blocks a launch has: symbolic where `batch` is."""
        tall = (batch * self.rows + (config.block_m - 1)) // config.block_m
        return tall * math.ceil(self.columns / config.block_n)

    def constants(self, config: Config) -> dict[str, Any]:
        """The kernel's compile-time arguments."""
        row, column = (1, self.columns) if self.columns_first else (self.pitch or self.depth, 1)
        return {
            **{name.upper(): value for name, value in asdict(self).items() if name in ("p", "q", "s", "o", "k", "t")},
            "WEIGHT_ROW": row,
            "WEIGHT_COLUMN": column,
            "CHANNELS": self.channels,
            "SHARE": self.share,
            "GELU": self.gelu,
            "PRECISION": "tf32" if self.precision == "tf32" else "ieee",
            "WIDE": self.wide,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_K": config.block_k,
        }

    def shape_class(self, batch: int) -> str:
        """Projections that share a configuration: equal but for the batch, whose rows count in powers of two."""
        rows = 1 << (batch * self.rows - 1).bit_length()
        flags = [name for name in ("columns_first", "bias", "accumulate", "wide") if getattr(self, name)]
        flags += [f"gelu {self.gelu}"] if self.gelu else []
        flags += ["scale"] if self.channels else []
        flags += [f"pitch {self.pitch}"] if self.pitch else []
        return " ".join([self.precision, f"rows {rows}", f"p{self.p} s{self.s} o{self.o} k{self.k} t{self.t}", *flags])

    def shared(self, config: Config) -> int:
        """Bytes of shared memory that the operands in flight need."""
        return config.stages * (config.block_m + config.block_n) * config.block_k * BYTES[self.precision]

    def candidates(self, sm: int, shared: int | None = None) -> tuple[Config, ...]:
        """The configurations that fit, largest tiles first; `shared` limits shared memory further."""
        step, wide = 64 if BYTES[self.precision] == 2 else 32, at_most(256, self.columns)
        found: dict[Config, None] = {}
        for block_m, block_n in ((tall, min(across, wide)) for tall, across in _TILES):
            # FP32 has no tensor cores: large tiles would not fit its registers.
            if self.precision == "fp32" and block_m * block_n > 64 * 128:
                continue
            depths = (at_most(step, self.depth), at_most(step // 2, self.depth))
            for warps, block_k in itertools.product(_warps(block_m, block_n), depths):
                deepest_first = [Config(block_m, block_n, block_k, warps, stages) for stages in (4, 3, 2)]
                found |= dict.fromkeys(pipelines(deepest_first, self.shared, sm, shared))
        return tuple(found)

    def default(self, batch: int, sm: int, shared: int | None = None) -> Config:
        """The configuration where nothing was measured: the largest tiles that give every multiprocessor one."""
        found = self.candidates(sm, shared)
        likely = [config for config in found if config.block_n < 256] or found
        return filling(likely, lambda config: self.tiles(config, batch), sm)

    def shortlist(self, batch: int, sm: int, count: int = 8) -> tuple[Config, ...]:
        """The tiles to measure at one batch, in one configuration each: whose number is nearest to the default's."""
        found = [config for config in leading(self.candidates(sm)) if config.block_m <= holding(batch * self.rows)]
        return nearest(found, lambda config: self.tiles(config, batch), self.default(batch, sm), count)

    def variants(self, config: Config, sm: int) -> tuple[Config, ...]:
        """See the protocol."""
        return alike(config, self.candidates(sm))


def _warps(block_m: int, block_n: int) -> tuple[int, ...]:
    """How many warps share a tile: of 128 x 128 and 64 x 256, either may be faster.

    Four have too few registers for the addresses of 256 rows.
    """
    if block_m * block_n == 128 * 128 and block_m < 256:
        return 8, 4
    return (8,) if block_m * block_n >= 128 * 128 else (4,)
