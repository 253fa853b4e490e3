"""Where an activation saturates: from the histogram of its magnitudes to the value that gets the largest code.

A low threshold makes the codes fine and cuts off what lies beyond it; each calibrator is one way to trade the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from mlpdeploy.graph.quantisation.codes import Codes

BINS = 2048
PERCENTILE = 99.99
FEWEST = 128
"""Bins of the lowest threshold that is tried: as many as 8 bits and a sign have magnitudes."""
STRIDE = 16
"""Bins between two thresholds that are tried."""


@dataclass(frozen=True)
class Histogram:
    """Counts (BINS,) of magnitudes in equal bins from 0 to `largest`."""

    counts: np.ndarray
    largest: float

    @property
    def centres(self) -> np.ndarray:
        """The middle of each bin."""
        return (np.arange(len(self.counts)) + 0.5) * (self.largest / len(self.counts))


def by_max(histogram: Histogram, codes: Codes) -> float:
    """Nothing saturates."""
    return histogram.largest


def by_percentile(histogram: Histogram, codes: Codes) -> float:
    """PERCENTILE per cent of the values do not saturate."""
    total = np.cumsum(histogram.counts)
    bins = int(np.searchsorted(total, total[-1] * PERCENTILE / 100)) + 1
    return histogram.largest * min(bins, len(total)) / len(total)


def by_mse(histogram: Histogram, codes: Codes) -> float:
    """The squared error of rounding and saturation together is least."""
    centres, weights = histogram.centres, histogram.counts.astype(np.float64)

    def error(threshold: float) -> float:
        step = threshold / codes.largest
        decoded = codes.rounded(torch.from_numpy(centres / step)).double().numpy() * step
        return float(weights @ (centres - decoded) ** 2)

    return min(_thresholds(histogram), key=error)


def by_entropy(histogram: Histogram, codes: Codes) -> float:
    """The codes' distribution diverges least from the values' (Kullback-Leibler; Migacz, 8-bit Inference, GTC 2017)."""
    counts = histogram.counts.astype(np.float64)

    def divergence(threshold: float) -> float:
        kept = round(threshold / histogram.largest * len(counts))
        reference = counts[:kept].copy()
        reference[-1] += counts[kept:].sum()
        return _divergence(reference, _requantised(counts[:kept], codes.levels(kept)))

    return min(_thresholds(histogram), key=divergence)


CALIBRATORS: Mapping[str, Callable[[Histogram, Codes], float]] = {
    "max": by_max,
    "percentile": by_percentile,
    "entropy": by_entropy,
    "mse": by_mse,
}


def threshold(calibrator: str, histogram: Histogram, codes: Codes) -> float:
    """The magnitude that gets the largest code; 1 for an activation that is zero throughout."""
    return CALIBRATORS[calibrator](histogram, codes) if histogram.largest > 0 else 1.0


def _thresholds(histogram: Histogram) -> list[float]:
    """The ends of every STRIDE-th bin, from FEWEST bins on, the largest value first."""
    bins = len(histogram.counts)
    return [histogram.largest * kept / bins for kept in range(bins, FEWEST - 1, -STRIDE)]


def _requantised(counts: np.ndarray, level: np.ndarray) -> np.ndarray:
    """The counts of all bins of one `level`, a run of them, spread evenly over its bins that are not empty."""
    filled = counts > 0
    totals, places = np.bincount(level, counts), np.bincount(level, filled)
    return np.where(filled, (totals / np.maximum(places, 1))[level], 0.0)


def _divergence(reference: np.ndarray, approximation: np.ndarray) -> float:
    """KL(reference || approximation) of two histograms; what the second does not know counts as one millionth."""
    p = reference / reference.sum()
    total = approximation.sum()
    q = np.maximum(approximation / total if total else approximation, 1e-6 / len(p))
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / q[seen])).sum())
