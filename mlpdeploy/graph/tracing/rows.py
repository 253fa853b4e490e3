"""Rows in batches: of any size, or of the one that a network's own code fixes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mlpdeploy.graph.tracing.trace import TensorSpec


def fixed_batch(inputs: Sequence[TensorSpec]) -> int | None:
    """The only batch size that a network with these inputs takes; None where it takes any."""
    return inputs[0].batch if inputs else None


def chunks(count: int, size: int, least: int = 1) -> Iterator[tuple[np.ndarray, int]]:
    """The places of `count` rows, `size` at a time, and how many of them are new.

    Where fewer than `least` are left, the last chunk is filled up with its own rows.
    """
    for start in range(0, count, size):
        index = np.arange(start, min(start + size, count))
        yield np.resize(index, max(len(index), least)), len(index)


def alike(rows: Mapping[str, np.ndarray]) -> bool:
    """Whether several rows (n, ...) by input name are all the same."""
    return all(len(values) > 1 and bool((values == values[:1]).all()) for values in rows.values())
