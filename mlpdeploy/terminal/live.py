"""Live progress on stderr: the stage that runs, and a line for each that has ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from mlpdeploy.system.streams import aside
from mlpdeploy.terminal.screen import escape


class Live:
    """Draws the stage that runs, and leaves one line for each that has ended; in a log, only those lines."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    @contextmanager
    def shown(self) -> Iterator[Live]:
        """Draw while the body runs, where there is a terminal; what the network's own code prints goes to stderr."""
        with aside():
            yield from self._drawn()

    def _drawn(self) -> Iterator[Live]:
        if not self.console.is_terminal:
            yield self
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as self._progress:
            yield self
        self._progress = None

    def begin(self, stage: str) -> None:
        """See progress.Listener."""
        if self._progress is not None:
            self._task = self._progress.add_task(escape(stage), total=None)

    def step(self, phase: str, done: int, total: int) -> None:
        """See progress.Listener."""
        if self._progress is not None and self._task is not None:
            shown = phase if len(phase) <= 40 else f"{phase[:39]}…"
            self._progress.update(self._task, description=escape(shown), completed=done, total=total or None)

    def end(self, stage: str, seconds: float, failed: bool) -> None:
        """See progress.Listener."""
        if self._progress is not None and self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        outcome = "  [red]failed[/]" if failed else ""
        self.console.print(f"  {escape(stage):<16}{seconds:7.1f} s{outcome}", highlight=False)

    def say(self, line: str) -> None:
        """See progress.Listener."""
        self.console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)
