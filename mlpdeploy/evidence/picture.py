"""Pictures as SVG text: bars for what INT8 costs each module, a curve for accuracy against what stays in INT8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, ROW, LABELS, MARGIN = 860, 18, 330, 16
TEXT = 'font-family="sans-serif" font-size="12"'
INK, BAR, GRID = "#24292f", "#2f6f9f", "#d0d7de"
SHOWN = 40
"""Bars of one picture; the rest, which cost less, are counted below it."""
FLOOR_DB = 100.0
"""Noise below this is drawn as none."""


def bars(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Output noise in decibels below the signal by module (`Sensitivity.to_json`), the loudest first."""
    shown = rows[:SHOWN]
    levels = [FLOOR_DB if row["sqnr_db"] is None else min(max(row["sqnr_db"], 0.0), FLOOR_DB) for row in shown]
    most = max((FLOOR_DB - level for level in levels), default=1.0) or 1.0
    room = WIDTH - LABELS - 90
    parts = []
    for index, (row, level) in enumerate(zip(shown, levels, strict=True)):
        y = 44 + index * ROW
        length = room * (FLOOR_DB - level) / most
        name, shown_db = _clip(row["module"] or row["node"]), "none" if row["sqnr_db"] is None else f"-{level:.1f} dB"
        parts.append(_text(LABELS - 8, y + 12, name, anchor="end"))
        parts.append(f'<rect x="{LABELS}" y="{y + 2}" width="{length:.1f}" height="{ROW - 5}" fill="{BAR}"/>')
        parts.append(_text(LABELS + length + 6, y + 12, shown_db))
    height = 44 + len(shown) * ROW + 28
    if len(rows) > len(shown):
        parts.append(_text(LABELS, height - 10, f"and {len(rows) - len(shown)} more that cost less"))
    head = _text(MARGIN, 24, f"{title}: noise at the output where one module alone takes INT8")
    return _svg(height, [head, *parts])


def curve(title: str, points: Sequence[Mapping[str, Any]]) -> str:
    """Output SQNR in decibels against the share of multiply-accumulates in INT8, a mark for each mixed network tried.

    Each mark has its top-1 where known; networks with nothing in INT8, which have no noise, are left out.
    """
    marks = [point for point in points if point["sqnr_db"] is not None]
    left, right, top, bottom = 70, WIDTH - 120, 50, 330
    levels = [point["sqnr_db"] for point in marks] or [0.0]
    low, high = min(levels) - 1, max(levels) + 1

    def place(point: Mapping[str, Any]) -> tuple[float, float]:
        share, level = point["int8_macs"], point["sqnr_db"]
        return left + (right - left) * share, bottom - (bottom - top) * (level - low) / (high - low)

    parts = []
    for step in range(5):
        level, y = low + (high - low) * step / 4, bottom - (bottom - top) * step / 4
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(_text(left - 8, y + 4, f"{level:.1f}", anchor="end"))
        x = left + (right - left) * step / 4
        parts.append(_text(x, bottom + 20, f"{25 * step} %", anchor="middle"))
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, marks))
    parts.append(f'<polyline points="{line}" fill="none" stroke="{BAR}" stroke-width="2"/>')
    for point in marks:
        x, y = place(point)
        top1 = "" if point["top1"] is None else f", top-1 {point['top1']:.1%}"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{BAR}"/>')
        parts.append(_text(x + 8, y - 6, f"{point['kept']} kept{top1}"))
    head = _text(MARGIN, 24, f"{title}: output SQNR (dB) by share of multiply-accumulates in INT8")
    return _svg(bottom + 40, [head, *parts])


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{INK}" {TEXT}>{escape(text)}</text>'


def _clip(name: str, limit: int = 46) -> str:
    return name if len(name) <= limit else f"…{name[1 - limit :]}"


def _svg(height: float, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )
