"""Text that came from somewhere else, so that it says what it says and does nothing more.

Names, reasons and messages may come from other people's artifacts, networks and repositories. A terminal obeys escape
sequences that stand in them, and characters that turn the direction of writing make a line read as another.
"""

from __future__ import annotations

import unicodedata
import warnings
from typing import Any

from mlpdeploy.errors import TunedElsewhere

_FORMAT = warnings.formatwarning


def clean(text: str) -> str:
    """The text without characters that control what shows it; lines stay lines."""
    if text.isprintable():
        return text
    return "".join(c for c in text if c.isprintable() or c == "\n" or unicodedata.category(c) == "Zs")


def plain(value: object) -> str:
    """A value as clean text in one line."""
    return clean("".join(" " if character.isspace() else character for character in str(value)))


def formatted(message: Warning | str, category: type[Warning], *place: Any, **line: Any) -> str:
    """A warning as the command line prints it: our own is one line without its place (see warnings.formatwarning)."""
    if issubclass(category, TunedElsewhere):
        return f"warning: {plain(message)}\n"
    return _FORMAT(message, category, *place, **line)


def megabytes(size: float) -> str:
    """Bytes as megabytes: one digit behind the point, or what shows two digits of less than 0.1."""
    behind = 1 if size >= 100_000 or size == 0 else min(6, 8 - len(str(round(size))))
    return f"{size / 1e6:.{behind}f}"
