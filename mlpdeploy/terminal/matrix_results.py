"""What `mlpdeploy matrix` makes of a document beside its table: a page, Markdown, the best engines, what changed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from mlpdeploy.errors import InputError
from mlpdeploy.terminal.artifacts import SIMPLE
from mlpdeploy.terminal.options import keep, require_room
from mlpdeploy.terminal.screen import escape

if TYPE_CHECKING:
    from mlpdeploy.evidence.documents.matrix import Matrix
    from mlpdeploy.evidence.report.matrix.best import Limits
    from mlpdeploy.evidence.report.matrix.changes import Changes
    from mlpdeploy.evidence.report.matrix.result import Result

PANEL = "What is made of the result"
Html = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page about it.", rich_help_panel=PANEL)]
InMarkdown = Annotated[
    Path | None, typer.Option("--markdown", metavar="FILE", help="Append a summary for CI.", rich_help_panel=PANEL)
]
Earlier = Annotated[
    Path | None,
    typer.Option("--diff", metavar="FILE", help="Say what changed since this saved result.", rich_help_panel=PANEL),
]
MaxLatency = Annotated[
    float | None,
    typer.Option(metavar="MS", help="Of engines at most so slow, name the most accurate.", rich_help_panel=PANEL),
]
MinTop1 = Annotated[
    str | None,
    typer.Option(
        "--min-top1", metavar="P%", help="Of engines right at least so often, name the fastest.", rich_help_panel=PANEL
    ),
]
MaxSize = Annotated[
    float | None, typer.Option(metavar="MB", help="Of engines at most so large, name the best.", rich_help_panel=PANEL)
]
MOST = 20
"""Changes of one kind that the terminal shows."""


@dataclass(frozen=True)
class Wanted:
    """What is asked for beside the table, checked before any job runs."""

    html: Path | None
    markdown: Path | None
    limits: Limits
    earlier: Path | None
    before: Matrix | None

    def __bool__(self) -> bool:
        return bool(self.limits) or any(one is not None for one in (self.html, self.markdown, self.earlier))

    def of(self, document: Matrix, *, whole: bool) -> Result:
        """The result of a document; `whole` says that it is of all jobs of its plan, or of its shard."""
        from mlpdeploy.evidence.report.matrix.changes import changes
        from mlpdeploy.evidence.report.matrix.result import Result

        since = None
        if self.before is not None:
            since = changes(document, self.before, str(self.earlier), whole=whole)
        return Result(document, self.limits, since)

    def write(self, result: Result) -> None:
        """The page and the Markdown, where they are asked for."""
        if self.html is not None:
            from mlpdeploy.evidence.report.matrix.page import page

            keep(self.html, page(result))
        if self.markdown is not None:
            from mlpdeploy.evidence.report.matrix.summary import summary

            keep(self.markdown, summary(result), append=True)


def wanted(
    html: Path | None,
    markdown: Path | None,
    earlier: Path | None,
    max_latency: float | None,
    min_top1: str | None,
    max_size: float | None,
    *,
    saved: Path | None,
) -> Wanted:
    """What the options ask for; `saved` is where the document goes.

    Raises InputError for values that cannot be used, for files that could not be written and an earlier result that
    cannot be read, MachineLacks where a library that draws the page is missing.
    """
    from mlpdeploy.evidence.documents.matrix import read
    from mlpdeploy.evidence.documents.regress import percentage
    from mlpdeploy.evidence.report.matrix.best import Limits
    from mlpdeploy.evidence.report.matrix.page import needed

    for option, value, unit in (("--max-latency", max_latency, "milliseconds"), ("--max-size", max_size, "megabytes")):
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{option} {value:g}: give {unit} above 0")
    top1 = None if min_top1 is None else percentage("--min-top1", min_top1)
    if top1 is not None and top1 > 1:
        raise InputError(f"--min-top1 {min_top1}: no engine is right in more than 100%")
    limits = Limits(max_latency, top1, None if max_size is None else 1e6 * max_size)
    before = None if earlier is None else read(earlier)
    require_room(saved, html, markdown)
    if html is not None:
        needed()
    return Wanted(html, markdown, limits, earlier, before)


def print_result(console: Console, result: Result) -> None:
    """The best engines within limits, and what changed, where they are asked for."""
    if result.limits:
        print_best(console, result)
    if result.since is not None:
        print_changes(console, result.since)


def print_best(console: Console, result: Result) -> None:
    """The engine of each network that is best within the limits, at each place and batch size."""
    from mlpdeploy.evidence.report.matrix.words import pick, timed_at

    console.print(f"\n[bold]{escape(result.limits.sentence)}[/]: the {result.limits.wanted}", highlight=False)
    table = Table(**SIMPLE)
    for name in ("  network", "timed at", "engine", ""):
        table.add_column(name)
    for one in result.best:
        found = "[red]none[/]" if one.within is None else escape(pick(one, one.within))
        table.add_row(f"  {escape(one.network)}", escape(timed_at(result.seen, one)), found, escape(one.why))
    console.print(table)


def print_changes(console: Console, since: Changes) -> None:
    """What changed since an earlier run, what got worse first."""
    from mlpdeploy.evidence.report.matrix.changes import BETTER, KINDS, WORSE
    from mlpdeploy.evidence.report.matrix.words import told

    heading = f"\n[bold]Since {escape(since.earlier)}[/]: {told(since.counts()) or 'nothing changed'}"
    console.print(heading, highlight=False, soft_wrap=True)
    for kind in KINDS:
        style = "red" if kind in WORSE else "green" if kind in BETTER else "default"
        found = since.of(kind)
        for one in found[:MOST]:
            line = f"  [{style}]{kind}[/] {escape(one.job)}: {escape(one.text)}"
            console.print(line, highlight=False, soft_wrap=True)
        if len(found) > MOST:
            console.print(f"  [{style}]{kind}[/] and {len(found) - MOST} more", highlight=False)
    for note in since.notes:
        console.print(f"  {escape(note)}", style="dim", highlight=False, soft_wrap=True)
