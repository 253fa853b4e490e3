"""`mlpdeploy sensitivity` in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from mlpdeploy.terminal.screen import escape

SHOWN = 20
"""Sites that the terminal lists; the picture shows more, --json all."""


def print_sensitivity(console: Console, found: Mapping[str, Any], picture: str) -> None:
    """`mlpdeploy sensitivity`: the most harmful sites, and where the picture is."""
    console.print(
        f"[bold]{escape(found['name'])}[/]: what {found['precision'].upper()} costs, one module at a time",
        highlight=False,
    )
    for line in (found["weights"], f"calibrated on {found['calibration']['data']}", found["calibration"]["warning"]):
        if line:
            style = "yellow" if line == found["calibration"]["warning"] or line.startswith("random") else None
            console.print(f"  {escape(line)}", style=style, highlight=False)
    console.print(f"  all of them together: {found['whole_sqnr_db']:.1f} dB", highlight=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("  module", overflow="fold")
    for column in ("SQNR, dB", "top-1, points", "M MACs"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in found["sites"][:SHOWN]:
        level = "no noise" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}"
        top1 = "-" if row["top1"] is None else f"{row['top1']:+.2f}"
        table.add_row(f"  {escape(row['module'] or row['node'])}", level, top1, f"{row['macs'] / 1e6:.1f}")
    console.print(table)
    if len(found["sites"]) > SHOWN:
        console.print(f"  and {len(found['sites']) - SHOWN} that cost less")
    console.print(f"  picture: {escape(picture)}", highlight=False, soft_wrap=True)
