"""How what can be chosen is asked for on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Option:
    """How a field is asked for: `flag` where that is not its name, and `parse` where a text stands for its value."""

    help: str
    metavar: str | None = None
    flag: str | None = None
    parse: Callable[[str], Any] | None = None
    repeated: bool = False


def option(default: Any, help: str, **how: Any) -> Any:
    """A field with a default, and how it is asked for."""
    return field(default=default, metadata={"option": Option(help, **how)})
