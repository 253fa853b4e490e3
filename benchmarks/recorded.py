"""What was measured of each network and mlpdeploy takes along.

Into its recipe: `rules` of graph.json, `launches` and `moves` of launches.json. For searches: what rules are worth, of
rules.json.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mlpdeploy.graph.rules import LAYOUT

PLAIN, ALL = "plain export", "default rules"
"""Contenders of `benchmarks.launches` and `benchmarks.rules`."""
TRACED, PACKAGE = "kernels as traced", "package"
"""Contenders of `benchmarks.inductor_structure --packages`."""


def fired(row: Mapping[str, Any]) -> dict[str, int]:
    """The rules that fire in a network, from its row in graph.json; the layout pass, which always runs, is not one."""
    return {name: count for name, count in sorted(row["rules"].items()) if name != LAYOUT}


def launched(row: Mapping[str, Any]) -> dict[str, list[int]]:
    """Launches of the plain export and of ours, from a network's row in launches.json."""
    return {what: [row[label][what] for label in (PLAIN, ALL)] for what in ("total", "copies", "transposes")}


def moved(row: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Which modules our launches that only copy, or transpose, begin in, from a network's row in launches.json."""
    return {what: dict(modules) for what, modules in sorted(row[ALL].get("where", {}).items()) if modules}


def recorded(text: str, graphs: Mapping[str, Any], launches: Mapping[str, Any]) -> str:
    """A family's TOML file with what was counted of each of its networks: `rules`, `launches` and `moves`."""
    for name in re.findall(r"(?m)^\[networks\.(\w+)\]$", text):
        if name in graphs:
            text = with_counts(text, name, "rules", fired(graphs[name]))
        if name in launches:
            text = with_counts(text, name, "launches", launched(launches[name]))
            text = with_counts(text, name, "moves", moved(launches[name]))
    return text


def worth(rules: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """By engine, network and rule, where it was decided: the time without the rule over that with it.

    Of several batch sizes the one where it matters least.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for network, engines in rules.items():
        for engine, sizes in engines.items():
            rows = [row for size, row in sizes.items() if size.startswith("batch ")] if engine != "fired" else []
            for rule, ratio in (one for row in rows for one in _decided(row)):
                known = found.setdefault(engine, {}).setdefault(network, {})
                nearest = min((known.get(rule, ratio), ratio), key=lambda one: abs(one - 1))
                known[rule] = round(nearest, 3)
    return found


def _decided(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for label, times in row.items():
        how, _, rule = label.partition(" ")
        if how in ("with", "without") and times["ratio"]["verdict"] != "undecided":
            ratio = float(times["ratio"]["value"])
            yield rule, ratio if how == "without" else 1 / ratio


def with_counts(text: str, name: str, key: str, counts: Mapping[str, object]) -> str:
    """A family's TOML file with one table of counts of one network replaced."""
    table = re.compile(rf"(?ms)^\[networks\.{re.escape(name)}\]\n.*?(?=^\[|^#|\Z)")
    found = table.search(text)
    assert found is not None, name
    lines = [line for line in found[0].rstrip("\n").split("\n") if not line.startswith(f"{key} = ")]
    if counts:
        lines.append(f"{key} = {_inline(counts)}")
    gap = "\n" * (len(found[0]) - len(found[0].rstrip("\n")))
    return text[: found.start()] + "\n".join(lines) + gap + text[found.end() :]


def _inline(value: object) -> str:
    """A number, a list, or a table on one line, as TOML writes it."""
    if not isinstance(value, Mapping):
        return str(value)
    keys = {name: name if re.fullmatch(r"\w+", name) else f'"{name}"' for name in value}
    return f"{{ {', '.join(f'{keys[name]} = {_inline(one)}' for name, one in value.items())} }}"
