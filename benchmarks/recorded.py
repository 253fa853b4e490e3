"""How often each rule fires, taken from the results of `benchmarks.graph` into the recipes' `rules`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mlpdeploy.graph.rules import LAYOUT


def fired(row: Mapping[str, Any]) -> dict[str, int]:
    """The rules that fire in a network, from its row in graph.json; the layout pass, which always runs, is not one."""
    return {name: count for name, count in sorted(row["rules"].items()) if name != LAYOUT}


def recorded(text: str, results: Mapping[str, Any]) -> str:
    """A family's TOML file with the `rules` of each of its networks that was measured."""
    for name in re.findall(r"(?m)^\[networks\.(\w+)\]$", text):
        if name in results:
            text = with_rules(text, name, fired(results[name]))
    return text


def with_rules(text: str, name: str, rules: Mapping[str, int]) -> str:
    """A family's TOML file with the `rules` of one network replaced."""
    table = re.compile(rf"(?ms)^\[networks\.{re.escape(name)}\]\n.*?(?=^\[|^#|\Z)")
    found = table.search(text)
    assert found is not None, name
    lines = [line for line in found[0].rstrip("\n").split("\n") if not line.startswith("rules = ")]
    if rules:
        lines.append(f"rules = {{ {', '.join(f'{rule} = {count}' for rule, count in rules.items())} }}")
    gap = "\n" * (len(found[0]) - len(found[0].rstrip("\n")))
    return text[: found.start()] + "\n".join(lines) + gap + text[found.end() :]
