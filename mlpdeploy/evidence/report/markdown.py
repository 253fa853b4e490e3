"""Markdown of values that may hold anything: what is not marked as Markdown here is shown as it is and does nothing.

GitHub and other programs that show Markdown take HTML, pictures, links and headings from it, and a name or a reason
may come from somebody else's network or artifact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mlpdeploy.system.text import plain

_INLINE = re.compile(r"([\\`*\[\]|~$])|(?<![^\W_])(_)|(_)(?![^\W_])")
_LINK = re.compile(r"(?i)(https?|ftp)(:)(?=//)|\b(www)(\.)|(\w)(@)(?=\w)|\b(mailto|xmpp)(:)")
_PIPE = re.compile(r"(?<!\\)\|")
_START = re.compile(r"^(#+(?= |$)|>|[+-](?= |$)|[=-]+$|\d+(?=[.)](?: |$)))")


class Markdown(str):
    """Text that is Markdown already, every value in it escaped."""


def text(value: object) -> Markdown:
    """A value as plain text, in one line that cannot break out of its table, its line or itself."""
    if isinstance(value, Markdown):
        return value
    found = " ".join(plain(value).split())
    found = _INLINE.sub(lambda match: f"\\{match[0]}", found)
    found = _LINK.sub(lambda match: "\\".join(part for part in match.groups() if part), found)
    found = found.replace("&", "&amp;").replace("<", "&lt;")
    return Markdown(_START.sub(lambda match: f"{match[0]}\\" if match[0].isdigit() else f"\\{match[0]}", found))


def code(value: object) -> Markdown:
    """A value as code, within a line."""
    found = " ".join(plain(value).split())
    if not found:
        return Markdown("")
    fence = _fence(found, 1)
    room = " " if found.startswith("`") or found.endswith("`") else ""
    return Markdown(f"{fence}{room}{found}{room}{fence}")


def _fence(content: str, least: int) -> str:
    """As many backticks, one more than stand together in the content."""
    return "`" * max(least, 1 + max(map(len, re.findall("`+", content)), default=0))


def strong(value: object) -> Markdown:
    """A value in bold type."""
    return Markdown(f"**{text(value)}**")


def block(language: str, lines: Iterable[str]) -> Markdown:
    """Lines of a program, none of which can end the block."""
    content = [plain(line) for line in lines]
    fence = _fence("\n".join(content), 3)
    return Markdown("\n".join([f"{fence}{language}", *content, fence]))


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Markdown:
    """A table; a header that ends in a colon aligns its column to the right."""
    names: list[object] = [name.removesuffix(":") for name in header]
    rule: list[object] = [Markdown("---:" if name.endswith(":") else "---") for name in header]
    cells = [names, rule, *rows]
    lines = (" | ".join(_PIPE.sub(r"\|", text(cell)) for cell in line) for line in cells)
    return Markdown("\n".join(f"| {line} |" for line in lines))


def items(lines: Iterable[object]) -> Markdown:
    """A list."""
    return Markdown("\n".join(f"- {text(line)}" for line in lines))
