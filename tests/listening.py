"""A listener of progress for tests of what is said meanwhile."""

from __future__ import annotations

from mlpdeploy.progress import Silent


class Listener(Silent):
    """Keeps the lines that were said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)
