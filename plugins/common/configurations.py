"""GPUs and precisions in numbers, and how a kernel is laid out on a block."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

POINTERS = {"fp16": "*fp16", "bf16": "*bf16", "fp32": "*fp32", "tf32": "*fp32"}
"""Precision to the type of a kernel's pointers; TF32 is how the products of FP32 numbers are formed."""

BYTES = {"fp16": 2, "bf16": 2, "fp32": 4, "tf32": 4}
GELUS = (None, "erf", "tanh")
"""No GELU, the exact one, and its approximation by tanh."""
OLDEST = 80
"""The first compute capability whose tensor cores and asynchronous copies the kernels are made for."""

_MULTIPROCESSORS = {80: 108, 86: 84, 89: 128, 90: 132, 100: 148, 120: 170}
"""Of the largest GPU of each compute capability: an unmeasured choice aims at one tile for each."""

SHARED = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
"""Shared memory that one block can have, in bytes (CUDA C++ Programming Guide, compute capabilities)."""

_RESERVED = 1 << 10
"""Bytes of shared memory that the system takes of every block; a multiprocessor has that of one block beside SHARED."""

INDEXABLE = 2**31
"""Elements of a tensor that 32-bit addresses reach."""


@dataclass(frozen=True)
class Config:
    """The tile of one block (rows, columns, depth of one step), its warps, and the steps that are in flight."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


Choice = Config | str
"""How a problem is computed: by a kernel in a configuration, or in a way that has a name."""


class Problem(Protocol):
    """What is to be computed, with everything but the batch."""

    def shape_class(self, batch: int) -> str:
        """A name that problems which share a configuration have in common, and those of other kernels never."""

    def default(self, batch: int, sm: int) -> Choice | None:
        """The choice where nothing was measured; None where the kernel fits no block of this GPU."""

    def candidates(self, sm: int) -> tuple[Choice, ...]:
        """The choices that a GPU can run."""

    def shortlist(self, batch: int, sm: int) -> tuple[Choice, ...]:
        """What is worth measuring: tiles in one configuration each."""

    def variants(self, config: Config, sm: int) -> tuple[Choice, ...]:
        """The other configurations of the same tile and warps: depths of a step, and steps in flight."""


def capability(sm: int) -> int:
    """The known compute capability that stands for `sm`: itself, or the last before it. Raises ValueError below 8.0."""
    if sm < OLDEST:
        raise ValueError(f"compute capability {sm // 10}.{sm % 10}: the kernel needs 8.0 or later")
    return max(known for known in SHARED if known <= sm)


def filling(found: Sequence[Config], tiles: Callable[[Config], Any], sm: int) -> Config:
    """The first configuration that gives every multiprocessor a tile; where none does, that of the most tiles."""
    enough = _MULTIPROCESSORS[capability(sm)]
    return next((config for config in found if tiles(config) >= enough), max(found, key=tiles))


def pipelines(
    deepest_first: Sequence[Config], needs: Callable[[Config], int], sm: int, limit: int | None = None
) -> list[Config]:
    """Of configurations by their steps in flight: the deepest that fits a block, and that of which two fit at once.

    Two blocks on a multiprocessor overlap what one does before and behind its products with those of the other.
    `needs`: bytes of shared memory. `limit`: as many at most, where a block could have more.
    """
    most = SHARED[capability(sm)]
    halves = (most - _RESERVED) // 2
    sizes = [min(size, limit or size) for size in (most, halves)]
    fitting = [next((config for config in deepest_first if needs(config) <= size), None) for size in sizes]
    return [*dict.fromkeys(config for config in fitting if config is not None)]


def leading(found: Sequence[Config]) -> list[Config]:
    """The first configuration of each tile and number of warps."""
    first: dict[tuple[int, ...], Config] = {}
    for config in found:
        first.setdefault(_tile(config), config)
    return [*first.values()]


def alike(config: Config, found: Sequence[Config]) -> tuple[Config, ...]:
    """The others that have its tile and its warps."""
    return tuple(other for other in found if other != config and _tile(other) == _tile(config))


def _tile(config: Config) -> tuple[int, ...]:
    return config.block_m, config.block_n, config.warps


def nearest(found: Sequence[Config], tiles: Callable[[Config], Any], to: Config, count: int) -> tuple[Config, ...]:
    """The configurations whose number of tiles is nearest to that of one of them."""
    wanted = tiles(to)
    distance = {config: abs(math.log(tiles(config) / wanted)) for config in found}
    return tuple(sorted(distance, key=lambda config: distance[config]))[:count]


def at_most(size: int, length: int) -> int:
    """`size`, or the power of two that holds `length`, at least 16, where that is less."""
    return min(size, holding(length))


def holding(length: int) -> int:
    """The power of two that holds `length`, at least 16, which is the least that tensor cores multiply."""
    return max(16, 1 << (length - 1).bit_length())
