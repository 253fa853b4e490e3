"""Build routes of TensorRT: whitespace-separated `-name=value` words, each a setting of its compiler."""

from __future__ import annotations

import re

from mlpdeploy.errors import InputError

WORD = re.compile(r"(-[^\s=\[\]|]+)=([^\s=\[\]|]+)")


def settings(route: str) -> dict[str, str]:
    """The values by name: `{"-copy_ppg": "off"}`. Raises InputError where a text is no route."""
    found: dict[str, str] = {}
    for word in route.split():
        match = WORD.fullmatch(word)
        if match is None or not word.isprintable():
            raise InputError(f"build route {word!r}: give words such as -copy_ppg=off, a name and one value each")
        if match[1] in found:
            raise InputError(f"build route: {match[1]} stands there twice")
        found[match[1]] = match[2]
    return found


def joined(*routes: str) -> str:
    """One route of several, of which later ones count more."""
    found: dict[str, str] = {}
    for route in routes:
        found |= settings(route)
    return " ".join(f"{name}={value}" for name, value in found.items())
