"""The parts of every table: Markdown, ratios, and what numbers were taken on."""

from __future__ import annotations

from typing import Any

Document = dict[str, Any]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def worth(ratio: dict[str, Any], inverse: bool = False) -> str:
    """A ratio with two digits, or its inverse; in brackets where its interval holds 1."""
    text = f"{1 / ratio['value'] if inverse else ratio['value']:.2f}"
    return f"({text})" if ratio["verdict"] == "undecided" else text


def rule_name(label: str) -> str:
    """The rule that a row of `rules` or `launches` left out or put in."""
    if label == "default rules":
        return "(none: two loads of one file)"
    return f"`{label.split(' ', 1)[1]}`" if label.startswith(("with ", "without ")) else "all of them"


NAMED = 8
"""Rows of another machine beyond which they are counted."""


def source(document: Document, packages: list[str], part: str = "") -> list[str]:
    """What the numbers, or those of a part, were taken on; rows that name a machine of their own, with it."""
    threads = document["settings"].get("threads")
    rows = {n: row for n, row in document["results"].items() if isinstance(row, dict) and n.startswith(part)}
    own = [row.get("machine") for row in rows.values()]
    machine = own[0] if own and own[0] and all(one == own[0] for one in own) else document["machine"]
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in packages if name in machine["versions"])
    cores = f"{threads} of {machine['cores']} cores" if threads else f"{machine['cores']} cores"
    said = f"{machine['cpu']}, {cores}, Python {machine['python']}, {versions}; {document['date']}."
    others: dict[str, list[str]] = {}
    for name, row in rows.items():
        if row.get("machine", machine) != machine:
            others.setdefault(f"{row['machine']['cpu']}, {row['machine']['cores']} cores", []).append(f"`{name}`")
    told = ((", ".join(names) if len(names) <= NAMED else f"{len(names)} rows", cpu) for cpu, names in others.items())
    return [" ".join([said, *(f"Of {names}: {cpu}." for names, cpu in told)])]


def measured(row: Document) -> Document:
    """A row without the machine that it may name."""
    return {name: value for name, value in row.items() if name != "machine"}


def by_part(document: Document) -> dict[str, dict[str, Any]]:
    """The rows by part and network."""
    parts: dict[str, dict[str, Any]] = {}
    for key, row in document["results"].items():
        part, name = key.split(" ", 1)
        parts.setdefault(part, {})[name] = row
    return parts
