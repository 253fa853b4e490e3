"""The charts of a report, drawn by Matplotlib as SVG whose colours are variables of the page's style sheet.

Charts are narrow, so that they are readable on a phone, and keep text as text.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from mlpdeploy.evidence.report.blocks import TIMES
from mlpdeploy.evidence.report.verdicts import engine_of, speedup
from mlpdeploy.system.documents import Document
from mlpdeploy.system.text import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Colours that stand for the page's variables; no two digits of them mean anything else.
INK, MUTED, GRID, ENGINE, OTHER, GOOD, BAD = (f"#0101{n:02x}" for n in range(1, 8))
LIGHT = {
    "ink": "#1b2430", "muted": "#5b6675", "line": "#dde2e8", "accent": "#0b6bcb", "other": "#a9b4c2", "good": "#137a45",
    "bad": "#c22f2b",
}  # fmt: skip
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", ENGINE: "accent", OTHER: "other", GOOD: "good", BAD: "bad"}

WIDTH = 5.0
"""Inches, at 72 units each: what a page of 400 pixels has room for."""
TEXT = 10.5
"""Size of the text, in the same units."""
SMALLEST = 1e-17
"""Errors below this, 0 among them, are drawn here: float64 ends at 1e-16."""
MARKERS = "os^Dv"
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
LONGEST = 44
"""Characters of a name that has to fit."""
MOST = 12
"""Operations with a bar of their own."""


def accuracy(stages: Sequence[Document]) -> str:
    """By stage, the largest error at each batch size, and the budget as a line that it must not cross."""
    shown = [stage for stage in stages if stage["checks"]]
    sizes = sorted({check["batch"] for stage in shown for check in stage["checks"]})

    def paint(ax: Axes) -> None:
        for row, stage in enumerate(shown):
            _stage(ax, row, stage, sizes)
        for index, size in enumerate(sizes):
            ax.plot([], [], MARKERS[index % len(MARKERS)], color=ENGINE, markersize=4, label=f"batch {size}")
        ax.plot([], [], "|", color=BAD, markersize=11, markeredgewidth=2, label="budget")
        ax.legend(loc="upper center", bbox_to_anchor=(0.45, -0.14), ncols=3, handletextpad=0.2)
        in_tens(ax, "x")
        ax.set_xlim(SMALLEST / 3, 10)
        ax.set_ylim(len(shown) - 0.3, -0.75)
        ax.set_yticks([])
        ax.grid(axis="x", color=GRID, linewidth=0.6)

    return svg(paint, 0.66 * len(shown) + 0.95, "Largest relative error of each stage, and its budget", "accuracy")


def _stage(ax: Axes, row: int, stage: Document, sizes: Sequence[int]) -> None:
    write(ax, stage["name"], SMALLEST / 2, row - 0.42)
    budget = stage["budget"]["max_relative_error"]
    ax.plot([budget, budget], [row - 0.2, row + 0.2], color=BAD, linewidth=2)
    for index, size in enumerate(sizes):
        errors = [error for check in stage["checks"] if check["batch"] == size for error in _errors(check)]
        if errors:
            worst = max(errors)
            at = 5.0 if math.isinf(worst) else max(worst, SMALLEST)
            height = row + 0.16 * (index - (len(sizes) - 1) / 2) / max(1, len(sizes) - 1) * 2
            ax.plot(at, height, MARKERS[index % len(MARKERS)], color=BAD if worst > budget else ENGINE, markersize=4.5)


def _errors(check: Document) -> list[float]:
    """The errors of a check, in order and permuted; infinite where a value was not finite."""
    found = [check["reference"], check["permuted"]]
    return [math.inf if one["max_relative"] is None else one["max_relative"] for one in found if one is not None]


def latency(measurement: Document) -> str:
    """How many times as long each contender takes as the engine, with the interval of that ratio, and its median."""
    engine, rows = engine_of(measurement), measurement["contenders"]
    ratios = {ratio["baseline"]: speedup(ratio) for ratio in engine["ratios"]}

    def paint(ax: Axes) -> None:
        ends = []
        for row, one in enumerate(rows):
            usual = one["median_ms"] / engine["median_ms"]
            value, low, high = ratios.get(one["name"], (usual, usual, usual))
            ours = one is engine
            ax.barh(row, value, 0.5, color=ENGINE if ours else OTHER)
            if high > low:
                ax.plot([low, high], [row, row], color=INK, linewidth=1.4, marker="|", markersize=7)
            ends.append(high)
            text = f"{one['median_ms']:.3g} ms" + ("" if ours else f", {value:.2f}{TIMES}")
            write(ax, text, high, row, shift=6)
            write(ax, one["name"], 0, row - 0.43, color=MUTED)
        ax.axvline(1, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        ax.set_xlim(0, max(ends) * 1.5)
        ax.set_ylim(len(rows) - 0.55, -0.75)
        ax.set_yticks([])
        ax.set_xlabel("time, the engine's is 1", fontsize=TEXT, color=MUTED)

    title = f"Latency at batch {measurement['batch']} beside the engine's"
    return svg(paint, 0.62 * len(rows) + 0.65, title, f"latency{measurement['batch']}")


def roofline(bench: Document) -> str:
    """Multiply-accumulates a second over those a byte: the two limits of the machine, and every contender below."""
    roof = bench["roofline"]
    peak, copy = roof["peak_gmacs_per_second"], roof["copy_gbytes_per_second"]
    limits = {limit["batch"]: limit for limit in roof["limits"]}
    points = [
        (limits[m["batch"]]["macs"] / limits[m["batch"]]["bytes"], one, m["batch"])
        for m in bench["measurements"]
        if m["batch"] in limits
        for one in m["contenders"]
        if one["name"] in limits[m["batch"]]["percent_of_limit"]
    ]
    sizes = sorted({size for _, _, size in points})
    rates = {(size, one["name"]): limits[size]["macs"] / one["median_ms"] / 1e6 for _, one, size in points}

    def paint(ax: Axes) -> None:
        intensities = [x for x, _, _ in points] + [peak / copy]
        left, right = min(intensities) / 6, max(intensities) * 6
        ax.plot([left, peak / copy, right], [left * copy, peak, peak], color=INK, linewidth=1.6)
        write(ax, f"{peak:.3g} GMAC/s", right, peak * 1.12, ha="right", va="bottom")
        middle = math.sqrt(left * peak / copy)
        write(ax, f"{copy:.3g} GB/s", middle / 1.15, middle * copy, ha="right", va="bottom")
        for x, one, size in points:
            ours = one["kind"] == "engine"
            marker = MARKERS[sizes.index(size) % len(MARKERS)]
            ax.plot(x, rates[size, one["name"]], marker, color=ENGINE if ours else OTHER, markersize=6 if ours else 4.5)
        for index, size in enumerate(sizes):
            ax.plot([], [], MARKERS[index % len(MARKERS)], color=MUTED, label=f"batch {size}", linestyle="none")
        ax.plot([], [], "s", color=ENGINE, label="engine", linestyle="none")
        ax.plot([], [], "s", color=OTHER, label="others", linestyle="none")
        ax.legend(loc="lower right", handletextpad=0.1)
        in_tens(ax, "x", "y")
        ax.set_xlim(left, right)
        ax.set_ylim(min([left * copy, *rates.values()]) / 2, peak * 2.2)
        ax.set_xlabel("multiply-accumulates a byte", fontsize=TEXT, color=MUTED)
        ax.set_ylabel("GMAC/s", fontsize=TEXT, color=MUTED)
        ax.grid(color=GRID, linewidth=0.6)

    return svg(paint, 3.3, "What was reached, below the limits of this machine", "roofline")


def operations(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """The operations of the graph before the rules and after them, the most frequent ones."""
    names = sorted({*before, *after}, key=lambda name: (-max(before.get(name, 0), after.get(name, 0)), name))
    rows = [(name.rpartition("::")[2], before.get(name, 0), after.get(name, 0)) for name in names[:MOST]]
    if names[MOST:]:
        rest = names[MOST:]
        others = [sum(counts.get(name, 0) for name in rest) for counts in (before, after)]
        rows.append((f"{len(rest)} others", others[0], others[1]))
    most = max(max(first, second) for _, first, second in rows)

    def paint(ax: Axes) -> None:
        for row, (name, first, second) in enumerate(rows):
            for offset, count, colour in ((-0.17, first, OTHER), (0.17, second, ENGINE)):
                ax.barh(row + offset, count, 0.3, color=colour)
                write(ax, str(count), count, row + offset, shift=3, fontsize=TEXT - 1)
            write(ax, name, 0, row, shift=-4, ha="right")
        ax.set_xlim(0, most * 1.12)
        ax.set_ylim(len(rows) - 0.5, -0.6)
        ax.axis("off")

    return svg(paint, 0.39 * len(rows) + 0.2, "Operations before the rules and after them", "operations", left=0.45)


def in_tens(ax: Axes, *axes: str) -> None:
    """These axes in powers of ten, as plain text: Matplotlib's own labels are formulas, which take most of the time."""
    for name in axes:
        ax.set(**{f"{name}scale": "log"})
        axis = getattr(ax, f"{name}axis")
        axis.set_major_formatter(lambda value, _: f"10{str(round(math.log10(value))).translate(RAISED)}")
        axis.set_minor_formatter("")


def write(ax: Axes, text: str, x: float, y: float, shift: float = 0, rise: float = 0, **look: Any) -> None:
    """Text at a point, `shift` units to the right of it, `rise` above. It takes no room, and a dollar sign is one."""
    options: dict[str, Any] = {"fontsize": TEXT, "color": INK, "va": "center", "parse_math": False} | look
    text = plain(text)
    shown = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    ax.annotate(shown, (x, y), (shift, rise), textcoords="offset points", **options).set_in_layout(False)


def svg(paint: Callable[[Axes], None], height: float, title: str, name: str, left: float | None = None) -> str:
    """An `<svg>` of what `paint` draws; `left` is the share of the width that labels take (default: as needed)."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    look: dict[Any, Any] = dict.fromkeys(("xtick.color", "ytick.color"), MUTED)
    look |= dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), TEXT)
    look |= {"axes.edgecolor": GRID, "text.color": INK, "legend.labelcolor": INK, "legend.frameon": False}
    look |= {"svg.fonttype": "none", "svg.hashsalt": name}
    with mpl.rc_context(look):
        figure = Figure(figsize=(WIDTH, height), facecolor="none", layout="constrained" if left is None else None)
        ax = figure.add_axes((left, 0, 1 - left, 1)) if left is not None else figure.add_subplot()
        ax.set_facecolor("none")
        ax.tick_params(length=0, which="both")
        for side in ("top", "right", "left"):
            ax.spines[side].set_visible(False)
        paint(ax)
        file = io.StringIO()
        with warnings.catch_warnings():
            # That the fonts here lack a character does not matter: the reader's are used.
            warnings.simplefilter("ignore")
            figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _styled(file.getvalue(), title, name)


def standalone(chart: str, heading: str) -> str:
    """A chart as a file of its own: under a heading, on white, in the colours of a light page."""
    view = re.search(r'viewBox="([^"]*)"', chart)
    assert view is not None
    left, top, width, height = map(float, view[1].split())
    room = 24.0
    colours = "".join(f"--{name}: {colour}; " for name, colour in LIGHT.items())
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{2 * width:g}" '
        f'style="{colours}background: #fff; font-family: sans-serif"'
    )
    text = (
        f'<text x="{left + 4:g}" y="{top - 8:g}" style="font-size: 12px; fill: {LIGHT["ink"]}">{escape(heading)}</text>'
    )
    chart = chart.replace("<svg", opening, 1)
    chart = chart.replace(view[0], f'viewBox="{left:g} {top - room:g} {width:g} {height + room:g}"', 1)
    first = chart.index(">") + 1
    return f"{chart[:first]}{text}{chart[first:]}\n"


def _styled(svg: str, title: str, name: str) -> str:
    """The element alone: colours as variables, no fonts of its own, only the ids that are referred to."""
    body = svg[svg.index("<svg") :]
    view = re.search(r'viewBox="([^"]*)"', body)
    assert view is not None
    opening = f'<svg class="chart" role="img" aria-label="{escape(title)}" viewBox="{view[1]}">'
    body = re.sub(r"<svg[^>]*>", opening, body, count=1)
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)[\")]", body))
    body = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", body)
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    return re.sub(r"\n\s*", "\n", body)
