"""The charts of a network's engines: how accurate each is against what it costs, in time or in bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from mlpdeploy.evidence.report.charts import (
    BAD,
    ENGINE,
    GRID,
    LONGEST,
    MUTED,
    OTHER,
    SMALLEST,
    TEXT,
    in_tens,
    svg,
    write,
)
from mlpdeploy.system.text import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 2.9
AREA = (290.0, 150.0)
"""About what the axes' area is in units, for labels to find room in."""
CHARACTER, LINE, MARK = 5.4, 12.0, 9.0
"""About the width of a character, the height of a line and the size of a mark, in the same units."""
SHIFTS = (0, 1, -1, 2, -2, 3, -3, 4, -4)
"""Where a label may stand beside its mark, in lines above it, the best first."""


@dataclass(frozen=True)
class Mark:
    """An engine: what it costs, how accurate it is, and whether its job failed."""

    label: str
    cost: float
    accuracy: float
    failed: bool = False


def front(marks: Sequence[Mark], rank: int) -> list[Mark]:
    """The marks that no other one beats, by cost: none costs as little and is as accurate, and better in one of them.

    `rank` is 1 where more is more accurate, -1 where less is.
    """
    found: list[Mark] = []
    for one in sorted((mark for mark in marks if not mark.failed), key=lambda one: (one.cost, -rank * one.accuracy)):
        if not found or rank * one.accuracy > rank * found[-1].accuracy:
            found.append(one)
    return found


def scatter(marks: Sequence[Mark], cost: str, accuracy: str, title: str, name: str, *, share: bool) -> str:
    """Accuracy (up) against cost (to the right, from 0), a mark an engine, those joined that no other one beats.

    `share` says that accuracies are shares of right answers; else they are errors, drawn in powers of ten.
    """
    best = front(marks, 1 if share else -1)
    values = [100 * one.accuracy if share else max(one.accuracy, SMALLEST) for one in marks]
    low, high = _ends(values, share)
    right = 1.16 * max(one.cost for one in marks) or 1.0

    def height(value: float) -> float:
        place = (value - low) / (high - low) if share else math.log(value / low) / math.log(high / low)
        return AREA[1] * place

    def paint(ax: Axes) -> None:
        drawn = dict(zip(map(id, marks), values, strict=True))
        ax.plot([one.cost for one in best], [drawn[id(one)] for one in best], "-", color=ENGINE, linewidth=1.2)
        spots = [(AREA[0] * one.cost / right, height(value)) for one, value in zip(marks, values, strict=True)]
        taken = [(x - MARK / 2, y - MARK / 2, x + MARK / 2, y + MARK / 2) for x, y in spots]
        joined = [spot for one in best for mark, spot in zip(marks, spots, strict=True) if mark is one]
        taken += [box for pair in pairwise(joined) for box in _along(*pair)]
        ordered = sorted(zip(marks, values, spots, strict=True), key=lambda one: (one[0] not in best, one[0].cost))
        for one, value, spot in ordered:
            colour = BAD if one.failed else ENGINE if one in best else OTHER
            ax.plot(one.cost, value, "X" if one.failed else "o", color=colour, markersize=6, zorder=3)
            _label(ax, one, value, spot, taken)
        if not share:
            in_tens(ax, "y")
        ax.set_xlim(0, right)
        ax.locator_params(axis="x", nbins=6)
        ax.set_ylim(low, high)
        ax.set_xlabel(plain(cost)[:LONGEST], fontsize=TEXT, color=MUTED, parse_math=False)
        ax.set_ylabel(accuracy, fontsize=TEXT, color=MUTED)
        ax.grid(color=GRID, linewidth=0.6)

    return svg(paint, HEIGHT, plain(title), name)


Box = tuple[float, float, float, float]


def _label(ax: Axes, one: Mark, value: float, spot: tuple[float, float], taken: list[Box]) -> None:
    """The name of a mark where there is room for it, beside, above or below it; without a place it has none."""
    width = CHARACTER * min(len(one.label), LONGEST)
    sides = (1, -1) if spot[0] + width + MARK < AREA[0] else (-1, 1)
    for lines in SHIFTS:
        for side in (0, *sides) if lines else sides:
            left = spot[0] + side * MARK - width * (1 - side) / 2
            middle = spot[1] + lines * LINE
            box = (left, middle - LINE / 2, left + width, middle + LINE / 2)
            if box[0] >= 0 and box[2] <= AREA[0] + MARK and _free(box, taken):
                taken.append(box)
                look = {"ha": ("center", "left", "right")[side], "fontsize": TEXT - 1}
                write(ax, one.label, one.cost, value, side * MARK, lines * LINE, **look)
                return


def _along(start: tuple[float, float], end: tuple[float, float]) -> Iterator[Box]:
    """Small boxes on a line from one spot to another, for labels to keep off."""
    count = 1 + int(max(abs(end[0] - start[0]), abs(end[1] - start[1])) / 4)
    for step in range(count + 1):
        x, y = (first + (last - first) * step / count for first, last in zip(start, end, strict=True))
        yield x - 1, y - 1, x + 1, y + 1


def _free(box: Box, taken: Sequence[Box]) -> bool:
    inside = box[1] > -LINE / 2 and box[3] < AREA[1] + 2
    return inside and not any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in taken
    )


def _ends(values: Sequence[float], share: bool) -> tuple[float, float]:
    """Where the axis of accuracies begins and ends: around shares, and at whole powers of ten around errors."""
    low, high = min(values), max(values)
    if share:
        room = max(0.12 * (high - low), 0.5)
        return max(0.0, low - room), min(100.0 + room, high + room)
    return 10.0 ** math.floor(math.log10(low) - 0.05), 10.0 ** math.ceil(math.log10(high) + 0.05)
