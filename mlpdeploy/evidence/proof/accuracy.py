"""How often a classifier is right, how sure that is, and whether one of two is right more often on the same images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

TOP = 5
"""Among how many of the most probable classes the right one counts as found."""
NOT_FINITE, UNREAD = 254, 255
"""Places of the right class where the scores hold NaN or infinity, and where there is no image."""
Z = 1.959963984540054
"""The standard normal's quantile of 97.5 %, for intervals of 95 %."""
SIGNIFICANCE = 0.05


def places(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The place (n,) uint8 of the right class among scores (n, classes), 0 for the highest; TOP stands for all later.

    Of equal scores the earlier class comes first. Scores that are not all finite give NOT_FINITE.
    """
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    earlier = np.arange(scores.shape[1]) < labels[:, None]
    before = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
    found = np.minimum(before, TOP)
    return np.where(np.isfinite(scores).all(axis=1), found, NOT_FINITE).astype(np.uint8)


@dataclass(frozen=True)
class Share:
    """So many `right` of `count` images, and the 95 % interval of what that says of all images (Wilson's)."""

    right: int
    count: int

    @property
    def value(self) -> float:
        """The share that is right."""
        return self.right / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval: it stays between 0 and 1, and holds where all or none are right."""
        n, p = self.count, self.value
        centre, scale = p + Z**2 / (2 * n), 1 + Z**2 / n
        half = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
        return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


@dataclass(frozen=True)
class Paired:
    """On how many of the same images only the first of two classifiers is right, and only the second."""

    first: int
    second: int

    @property
    def p_value(self) -> float:
        """McNemar's exact test, two-sided: how likely a difference at least this large is if both are equally good.

        Each image on which they differ is then a fair coin, so it is a sum of binomial coefficients.
        """
        count, fewer = self.first + self.second, min(self.first, self.second)
        term = total = 1
        for k in range(fewer):
            term = term * (count - k) // (k + 1)
            total += term
        return float(min(1.0, 2 * total / 2**count))

    @property
    def worse(self) -> bool:
        """Whether the first is right less often, and not by chance (p below SIGNIFICANCE)."""
        return self.first < self.second and self.p_value < SIGNIFICANCE
