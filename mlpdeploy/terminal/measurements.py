"""What `bench`, `regress` and `history` print: tables that fit 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from mlpdeploy.evidence.latency.machine import computed_on
from mlpdeploy.evidence.report.words import PHASES, clock_notes, device_rows
from mlpdeploy.terminal.artifacts import SIMPLE
from mlpdeploy.terminal.screen import escape

STYLES = {
    "passed": "green", "regressed": "red", "undecided": "yellow", "accepted": "cyan", "not measured": "dim",
    "faster": "green", "slower": "red", "pays": "green", "costs": "red",
}  # fmt: skip
SHOWN = 12
"""Modules, and runs of a series, that a terminal shows."""


def print_bench(console: Console, document: Mapping[str, Any]) -> None:
    """`mlpdeploy bench`: the contenders at each batch, the roofline, where the time goes, what each rule is worth."""
    network, settings = document["network"], document["settings"]
    title = f"{network['name']} {network['precision']} with {network['backend']}"
    device = computed_on(document["machine"], network.get("device"))
    where = f"{settings['threads']} of {document['machine']['cores']} cores, {device}"
    console.print(f"[bold]{escape(title)}[/]  {escape(where)}", highlight=False, soft_wrap=True)
    console.print(f"  {escape(network['weights'])}", style=_weights_style(network), highlight=False, soft_wrap=True)
    for one in document["measurements"]:
        console.print(f"\n[bold]Batch {one['batch']}[/]")
        console.print(_contenders(one["contenders"]))
        _print_phases(console, one)
    console.print("  ratio: the engine's time over the other's, with its 95 % interval", style="dim")
    for name, reason in document["left_out"].items():
        console.print(f"  {escape(name)} left out: {escape(reason)}", style="dim", soft_wrap=True, highlight=False)
    _print_roofline(console, document["roofline"])
    _print_layers(console, document["layers"])
    if document["credit"] is not None:
        console.print("\n[bold]What each rule is worth[/], time without it over time with it")
        table = _table("  rule", ">fired", ">worth", "95 % interval", "verdict")
        for rule in document["credit"]:
            worth = (f"{rule['value']:.3f}", f"{rule['low']:.3f} to {rule['high']:.3f}", _styled(rule["verdict"]))
            table.add_row(f"  {escape(rule['rule'])}", str(rule["fired"]), *worth)
        console.print(table)


def print_regress(console: Console, document: Mapping[str, Any]) -> None:
    """`mlpdeploy regress`: one line a gate, and the verdict."""
    from mlpdeploy.evidence.documents.outcome import described, numbers, title

    verdict = document["verdict"]
    console.print(
        f"[bold]{escape(title(document))}[/] against {escape(described(document['baseline']))}",
        highlight=False,
        soft_wrap=True,
    )
    for line in document["baseline"].get("differs", ()):
        console.print(f"  not alike: {escape(line)}", style="yellow", highlight=False, soft_wrap=True)
    table = _table("  gate", ">baseline", ">candidate", ">change", ">limit", "verdict")
    for gate in document["gates"]:
        before, after, change, interval, limit = numbers(gate)
        unit = gate["unit"] if gate["name"] == "accuracy" else ""
        before, after = (text.removesuffix(unit).strip() for text in (before, after))
        change = f"{change}\n{interval}".strip()
        table.add_row(f"  {escape(gate['label'])}", before, after, change, limit, _styled(gate["verdict"]))
    console.print(table)
    for gate in document["gates"]:
        if gate["reason"]:
            console.print(f"  {gate['label']}: {escape(gate['reason'])}", style="dim", highlight=False, soft_wrap=True)
    console.print(f"[bold]{_styled(verdict)}[/]", highlight=False)


def print_history(console: Console, found: Any) -> None:
    """`mlpdeploy history`: for each series the last runs, each with a bar as long as it took."""
    from mlpdeploy.evidence.documents.history import sparkline

    for line in found.skipped:
        console.print(f"  {escape(line)}", style="yellow", highlight=False, soft_wrap=True)
    for series in found.series:
        shown, left = series.points[-SHOWN:], len(series.points) - SHOWN
        trend = sparkline([point.median_ms for point in series.points[-60:]])
        console.print(f"[bold]{escape(found.name)}[/] {escape(series.label)}  {trend}", highlight=False)
        if left > 0:
            console.print(f"  {left} earlier runs are not shown", style="dim")
        table = _table("  date", "revision", ">median", "", ">change", "verdict")
        table.columns[0].no_wrap = table.columns[3].no_wrap = True
        longest, moved = max(point.median_ms for point in shown), False
        for place, point in enumerate(shown, max(left, 0)):
            other = place > 0 and not point.comparable
            moved |= other
            bar = "█" * max(1, round(12 * point.median_ms / longest))
            change = "" if point.ratio is None else f"{100 * (point.ratio - 1):+.1f}%"
            median = f"{point.median_ms:.4g} ms{'*' if other else ' '}"
            date = point.created[:16].replace("T", " ")
            table.add_row(f"  {escape(date)}", escape(point.revision), median, bar, change, _styled(point.verdict))
        console.print(table)
        if moved:
            console.print("  * another machine or other versions than the run before", style="dim")


def _contenders(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Latency of each, and the engine's ratio to it."""
    ratios = {ratio["baseline"]: ratio for ratio in rows[0]["ratios"]}
    table = _table("  contender", ">median", ">p90", ">p99", ">images/s", ">ratio", "interval", "engine is")
    for row in rows:
        ratio = ratios.get(row["name"])
        times = [f"{row[key]:.4g}" for key in ("median_ms", "p90_ms", "p99_ms")]
        told = ["", "", ""]
        if ratio is not None:
            told = [f"{ratio['value']:.2f}", f"{ratio['low']:.2f} to {ratio['high']:.2f}", _styled(ratio["verdict"])]
        table.add_row(f"  {escape(row['name'])}", *times, f"{row['images_per_second']:.4g}", *told)
    table.columns[1].header = "median ms"
    return table


def _print_phases(console: Console, measurement: Mapping[str, Any]) -> None:
    """On a GPU: the copies beside the computing, which is what the table above compares; and what was no CUDA graph."""
    rows, notes = device_rows([measurement]), clock_notes([measurement])
    if rows:
        table = _table("  on the GPU's clock, ms", *(f">{name}" for name in PHASES.values()), "CUDA graph")
        for row in rows:
            times = (f"{milliseconds:.4g}" for milliseconds in row.milliseconds)
            table.add_row(f"  {escape(row.name)}", *times, "no" if row.uncaptured else "yes")
            notes += [f"{row.name} is no CUDA graph: {row.uncaptured}"] if row.uncaptured else []
        console.print(table)
        console.print("  times and ratios of the table above are those of the computing", style="dim")
    for note in notes:
        console.print(f"  {escape(note)}", style="dim", soft_wrap=True, highlight=False)


def _print_roofline(console: Console, roofline: Mapping[str, Any] | None) -> None:
    if roofline is None:
        return
    peak, copied = roofline["peak_gmacs_per_second"], roofline["copy_gbytes_per_second"]
    rates = f"{peak:.0f} GMAC/s in {roofline['dtype']}, {copied:.1f} GB/s"
    console.print(f"\n[bold]Limit of this machine[/], measured now: {rates}", highlight=False)
    for limit in roofline["limits"]:
        reached = ", ".join(f"{name} {percent:.0f} %" for name, percent in limit["percent_of_limit"].items())
        work = f"{limit['macs'] / 1e9:.2f} GMACs, {limit['bytes'] / 1e6:.0f} MB, {limit['bound']} bound"
        line = f"batch {limit['batch']}: {limit['limit_ms']:.3g} ms at best ({work}); reached: {reached}"
        console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)


def _print_layers(console: Console, layers: Mapping[str, Any]) -> None:
    before, after = layers["before"], layers["after"]
    if after is None:
        console.print(f"\n[bold]Time by module[/]: not measured: {escape(layers['reason'])}", highlight=False)
        return
    times = {module["path"]: module["milliseconds"] for module in (before or {"modules": ()})["modules"]}
    told = f"at batch {after['batch']}, told by {escape(after['profiler'])}"
    console.print(f"\n[bold]Time by module[/] {told}", highlight=False)
    table = _table("  module", ">export, ms", ">engine, ms", ">share")
    longest = sorted(after["modules"], key=lambda module: -module["milliseconds"])
    for module in longest[:SHOWN]:
        known = times.get(module["path"])
        cells = ["" if known is None else f"{known:.3f}", f"{module['milliseconds']:.3f}", f"{module['share']:.0%}"]
        table.add_row(f"  {escape(module['path'])}", *cells)
    rest = longest[SHOWN:]
    if rest:
        milliseconds, share = (sum(module[key] for module in rest) for key in ("milliseconds", "share"))
        table.add_row(f"  {len(rest)} more", "", f"{milliseconds:.3f}", f"{share:.0%}")
    whole = "" if before is None else f"{before['milliseconds']:.3f}"
    table.add_row("  all", whole, f"{after['milliseconds']:.3f}", "100%")
    console.print(table)


def _weights_style(network: Mapping[str, Any]) -> str | None:
    return "yellow" if network["weights"].startswith("random") else None


def _styled(verdict: str) -> str:
    style = STYLES.get(verdict)
    return f"[{style}]{verdict}[/]" if style else escape(verdict)


def _table(*columns: str) -> Table:
    """A table without lines; a column whose name begins with `>` is aligned to the right."""
    table = Table(**SIMPLE)
    for name in columns:
        table.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left")
    return table
