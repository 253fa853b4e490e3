"""The one way to the user's terminal: whatever is printed, only what mlpdeploy itself means to control controls it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich import markup
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from mlpdeploy.system import streams
from mlpdeploy.system.text import clean, plain


class Terminal(Console):
    """Rich's console, which cleans every piece of text that reaches it; styles and cursor moves are Rich's own.

    It draws no emoji: `:100:` in a batch of 1:100:200 is none.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See Console.render: everything that is printed goes through here, pieces of pieces too."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=clean(segment.text))

    def on_broken_pipe(self) -> None:
        """See Console.on_broken_pipe: who read has left, and the command ends with the code that it has anyway."""
        streams.unheard(self.file)


def escape(value: object) -> str:
    """A value in one line, nothing in which is markup to Rich."""
    return markup.escape(plain(value))
