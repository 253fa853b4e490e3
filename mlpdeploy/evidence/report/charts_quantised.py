"""The charts of what 8 bits cost: the noise of each module alone, and accuracy against the share that is in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlpdeploy.evidence.report.charts import ENGINE, GRID, MUTED, OTHER, TEXT, svg, write
from mlpdeploy.system.documents import Document

if TYPE_CHECKING:
    from matplotlib.axes import Axes


MOST = 40
"""Modules with a bar of their own, the loudest."""
NONE_DB = -100.0
"""Noise below this is drawn as none."""


def noise(rows: Sequence[Document], precision: str) -> str:
    """Noise at the output where one module alone takes codes, in decibels of the signal (`Sensitivity.to_json`)."""
    shown = rows[:MOST]
    levels = [NONE_DB if row["sqnr_db"] is None else max(NONE_DB, -row["sqnr_db"]) for row in shown]
    left = min(levels) - 10

    def paint(ax: Axes) -> None:
        for index, (row, level) in enumerate(zip(shown, levels, strict=True)):
            ax.barh(index, level - left, 0.42, left=left, color=ENGINE)
            write(ax, row["module"] or row["node"], left, index - 0.45, color=MUTED)
            text = "none" if row["sqnr_db"] is None else f"{level:.1f} dB"
            write(ax, text + _points(row["top1"]), level, index, shift=5)
        ax.set_xlim(left, left + (max(levels) - left) * 1.45)
        ax.set_ylim(len(shown) - 0.5, -0.85)
        ax.set_yticks([])
        more = f"; {len(rows) - len(shown)} more cost less" if len(rows) > len(shown) else ""
        ax.set_xlabel(f"noise below the signal, dB{more}", fontsize=TEXT, color=MUTED)

    return svg(
        paint, 0.47 * len(shown) + 0.7, f"Noise at the output where one module alone takes {precision.upper()}", "noise"
    )


def tradeoff(points: Sequence[Document], precision: str) -> str:
    """Output SQNR against the share of multiply-accumulates in codes, a mark for each mixed network that was tried.

    Networks with nothing in it, which have no noise, are left out.
    """
    marks = [point for point in points if point["sqnr_db"] is not None]
    if not marks:
        return ""

    def paint(ax: Axes) -> None:
        shares, levels = ([point[key] for point in marks] for key in ("quantised_macs", "sqnr_db"))
        ax.plot([100 * share for share in shares], levels, "o-", color=ENGINE, linewidth=1.6, markersize=5)
        for point, share, level in zip(marks, shares, levels, strict=True):
            top1 = "" if point["top1"] is None else f", top-1 {point['top1']:.1%}"
            write(ax, f"{point['kept']} kept{top1}", 100 * share, level, shift=-7, ha="right")
        ax.set_xlim(min(0, 100 * min(shares) - 60), 104)
        ax.set_xticks([0, 25, 50, 75, 100])
        ax.margins(y=0.15)
        ax.set_xlabel(f"multiply-accumulates in {precision.upper()}, %", fontsize=TEXT, color=MUTED)
        ax.set_ylabel("output SQNR, dB", fontsize=TEXT, color=MUTED)
        ax.grid(color=GRID, linewidth=0.6)
        ax.axvline(0, color=OTHER, linewidth=0.8)

    return svg(paint, 2.9, f"Output SQNR by the share of multiply-accumulates in {precision.upper()}", "tradeoff")


def _points(top1: float | None) -> str:
    return "" if not top1 else f", top-1 {top1:+.2f} points"
