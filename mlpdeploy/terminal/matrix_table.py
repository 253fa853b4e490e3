"""What `mlpdeploy matrix` shows: the jobs that run, a line for each that has ended, and the table at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mlpdeploy.evidence.documents.matrix import BUILT, CACHED, CANCELLED, FAILED, PENDING, STATES, Matrix, Row
from mlpdeploy.matrix.executor import Running
from mlpdeploy.system.text import megabytes, plain
from mlpdeploy.terminal.artifacts import SIMPLE
from mlpdeploy.terminal.screen import escape

STYLES = {BUILT: "green", CACHED: "cyan", FAILED: "red", CANCELLED: "yellow", PENDING: "dim"}
MOST = 12
"""Jobs under way that are shown; of others how many there are."""


class LiveMatrix:
    """Shows a run on stderr: on a terminal a table of what runs, else a line for each job that has ended."""

    def __init__(self, console: Console, jobs: int) -> None:
        self.console, self.jobs = console, jobs
        self._running: dict[str, tuple[Running, float]] = {}
        self._counts = dict.fromkeys(STATES, 0)
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[LiveMatrix]:
        """Draw while the body runs, where there is a terminal."""
        if not self.console.is_terminal:
            yield self
            return
        with Live(get_renderable=self._table, console=self.console, refresh_per_second=2, transient=True) as self._live:
            yield self
        self._live = None

    def kept(self, rows: Sequence[Row]) -> None:
        """See Watcher."""
        for row in rows:
            self._counts[row.state] += 1
        if rows:
            self.say(f"{len(rows)} of {self.jobs} jobs are done already")

    def begun(self, running: Running) -> None:
        """See Watcher."""
        self._running[running.job] = running, time.monotonic()

    def waits(self, row: Row) -> None:
        """See Watcher."""
        self._running.pop(row.job, None)

    def ended(self, row: Row) -> None:
        """See Watcher."""
        self._running.pop(row.job, None)
        self._counts[row.state] += 1
        line = f"  {_styled(row.state, 9)} {escape(row.job)}  [dim]{row.seconds:.1f} s[/]"
        self.console.print(line, highlight=False, soft_wrap=True)
        if row.error is not None:
            self.console.print(f"            {escape(row.error)}", highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        """See Watcher."""
        self.console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)

    def _table(self) -> RenderableType:
        """What runs now, and how many jobs stand how."""
        table, now = Table(**SIMPLE, show_header=False), time.monotonic()
        for running, since in list(self._running.values())[:MOST]:
            again = f"attempt {running.attempt}" if running.attempt > 1 else ""
            table.add_row(f"  {escape(running.job)}", running.step, f"{now - since:.0f} s", again)
        more = len(self._running) - MOST
        ended = sum(self._counts.values())
        told = [f"{count} {state}" for state, count in self._counts.items() if count]
        line = f"  {ended} of {self.jobs} jobs" + (f": {', '.join(told)}" if told else "")
        rest = [Text(f"  and {more} more")] if more > 0 else []
        return Group(table, *rest, Text(line, style="bold"))


def print_matrix(console: Console, document: Matrix, where: str | None = None) -> None:
    """The table at the end: a row a job, with those columns of which something is known."""
    columns: tuple[tuple[str, Callable[[Row], str]], ...] = (
        ("MB", lambda row: _or_none(row.facts.engine_bytes, megabytes)),
        ("launches", lambda row: _or_none(row.facts.launches, str)),
        ("layers", lambda row: _or_none(row.facts.layers, str)),
        ("of budget", lambda row: _or_none(row.facts.of_budget, lambda ratio: f"{ratio:.2g}")),
        ("top-1", lambda row: _or_none(row.facts.top1, lambda share: f"{share:.2%}")),
        ("ms", lambda row: _times(row.facts.latency_ms)),
        ("s", lambda row: f"{row.seconds:.0f}" if row.seconds else ""),
    )
    shown = [(name, of) for name, of in columns if any(of(row) for row in document.rows)]
    table = Table(**SIMPLE)
    table.add_column("  job")
    table.add_column("state")
    for name, _ in shown:
        table.add_column(name, justify="right")
    for row in document.rows:
        table.add_row(f"  {escape(row.job)}", _styled(row.state), *(of(row) for _, of in shown))
    console.print(table)
    for row in document.rows:
        if row.error is not None:
            log = "" if row.log is None else f" (log: {row.log})"
            console.print(
                f"  {escape(row.job)}: {escape(row.error + log)}", style="red", highlight=False, soft_wrap=True
            )
    told = ", ".join(f"{count} {state}" for state, count in document.counts().items() if count)
    console.print(f"[bold]{_heading(document.shard, document.plan)}[/]: {told}", highlight=False, soft_wrap=True)
    if where is not None:
        console.print(f"  in {escape(where)}", highlight=False, soft_wrap=True)


def print_jobs(console: Console, rows: Sequence[Row]) -> None:
    """`--dry-run`: each job, its commands and its needs."""
    table = Table(**SIMPLE)
    for name in ("  job", "commands", "needs"):
        table.add_column(name)
    for row in rows:
        needs = row.needs
        words = [
            "" if needs.cpus is None else f"{needs.cpus} CPUs",
            "" if needs.memory is None else f"{megabytes(needs.memory)} MB",
            "" if needs.gpu is None else f"GPU {needs.gpu}",
        ]
        told = ", ".join(filter(None, words))
        table.add_row(f"  {escape(row.job)}", ", ".join(step.name for step in row.steps), escape(told))
    console.print(table)
    console.print(f"[bold]{len(rows)} jobs[/]", highlight=False)


def _heading(shard: Mapping[str, int] | None, plan: Mapping[str, Any]) -> str:
    part = "" if shard is None else f", shard {shard['index']}/{shard['count']}"
    return f"{escape(plan['path'])}{part}"


def _or_none(value: Any, text: Callable[[Any], str]) -> str:
    return "" if value is None else text(value)


def _times(latency: Mapping[str, float]) -> str:
    """The engine's time at each batch size: 1: 0.52."""
    return "\n".join(f"{plain(batch)}: {milliseconds:.3g}" for batch, milliseconds in latency.items())


def _styled(state: str, width: int = 0) -> str:
    return f"[{STYLES[state]}]{state:<{width}}[/]"
