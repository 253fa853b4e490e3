"""Inputs that random rows never are: flat, black and white images, one hot pixel, a row a hundred times larger.

Variances are 0 there, sums of exponentials lie at their ends, and what only keeps a divisor from being 0 decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlpdeploy.graph.tracing.trace import TensorSpec

FACTOR = 100.0
"""How much larger than a random row the large one is."""

ZEROS, CONSTANT, BLACK, WHITE, ONE_HOT = "zeros", "a constant", "black", "white", "one hot element"
LARGE = f"{FACTOR:.0f} times larger"
NAMES = (ZEROS, CONSTANT, BLACK, WHITE, ONE_HOT, LARGE)


@dataclass(frozen=True)
class Extremes:
    """One row of every input for each of `names`: arrays by input name, `(len(names), *shape)`."""

    names: tuple[str, ...]
    arrays: Mapping[str, np.ndarray]


def extremes(specs: Sequence[TensorSpec], rng: np.random.Generator) -> Extremes:
    """The extreme rows that inputs of `specs` can have.

    A row that one of several inputs cannot have is a random one of it; a name that none of them can have is left out:
    a bounded input cannot be a hundred times larger, and without a normalisation or bounds nothing is black.
    Floating-point rows are float32, others int64.
    """
    found = {spec.name: _of(spec, rng) for spec in specs}
    names = tuple(name for name in NAMES if any(name in rows for rows in found.values()))
    arrays = {}
    for spec in specs:
        rows = found[spec.name]
        arrays[spec.name] = np.stack([rows[name] if name in rows else spec.draw(1, rng)[0] for name in names])
    return Extremes(names, arrays)


def _of(spec: TensorSpec, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The extreme rows of one input, by name, each of its shape."""
    if spec.low is not None and spec.high is not None:
        return _bounded(spec, spec.low, spec.high)
    pixel = (len(spec.black), *[1] * (len(spec.shape) - 1))
    rows = {
        ZEROS: np.zeros(spec.shape, np.float32),
        CONSTANT: np.ones(spec.shape, np.float32),
        LARGE: FACTOR * spec.draw(1, rng)[0],
        ONE_HOT: np.zeros(spec.shape, np.float32),
    }
    if spec.black:
        black, white = (np.asarray(one, np.float32).reshape(pixel) for one in (spec.black, spec.white))
        rows[BLACK], rows[WHITE] = (np.broadcast_to(one, spec.shape).copy() for one in (black, white))
        rows[ONE_HOT] = rows[BLACK].copy()
        rows[ONE_HOT][(slice(None), *_middle(spec.shape[1:]))] = white.reshape(-1)
    elif spec.shape:
        rows[ONE_HOT][_middle(spec.shape)] = 1
    return rows


def _bounded(spec: TensorSpec, low: float, high: float) -> dict[str, np.ndarray]:
    """Those of an input with values in [low, high): its bounds for black and white."""
    kind = np.float32 if spec.dtype.is_floating_point else np.int64
    last = np.nextafter(np.float32(high), np.float32(low)) if kind is np.float32 else int(high) - 1
    rows = {
        BLACK: np.full(spec.shape, low, kind),
        WHITE: np.full(spec.shape, last, kind),
        CONSTANT: np.full(spec.shape, (low + last) / 2, kind),
        ONE_HOT: np.full(spec.shape, low, kind),
    }
    rows[ONE_HOT][_middle(spec.shape)] = last
    return rows | ({ZEROS: np.zeros(spec.shape, kind)} if low <= 0 < high else {})


def _middle(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size // 2 for size in shape)
