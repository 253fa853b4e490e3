"""What a build rewrites: the rules of the graph, phase by phase, and the forms of the file, each with its engines."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType
from typing import Any

from mlpdeploy.engine import form, forms
from mlpdeploy.engine.backend import backends

GRAPH, FILE = "graph", "file"


def rulebook() -> list[dict[str, Any]]:
    """Every rule and form as JSON values: its name, what it does, what it rewrites, and for which engines it is on.

    `phase` is that of a rule of the graph, None of a form. `default`: whether it runs unless it is asked for. `needed`
    are the engines that refuse files, or answer wrongly, without a form.
    """
    return [*_rules(), *_forms()]


def _rules() -> list[dict[str, Any]]:
    from mlpdeploy.graph import rules
    from mlpdeploy.graph.rewrite import all_rules

    found = []
    for name, rule in all_rules().items():
        engines = [backend.name for backend in backends().values() if rule.default and name not in backend.off]
        row = {"name": name, "what": _what(rules, name), "rewrites": GRAPH, "phase": rule.phase}
        found.append({**row, "default": rule.default, "engines": engines, "needed": []})
    return found


def _forms() -> list[dict[str, Any]]:
    used = [(one, backend.name) for backend in backends().values() for one in backend.forms]
    found = []
    for name in form.names():
        engines = [engine for one, engine in used if one.name == name]
        needed = [engine for one, engine in used if one.name == name and one.needed]
        row = {"name": name, "what": _what(forms, name), "rewrites": FILE, "phase": None}
        found.append({**row, "default": bool(engines), "engines": engines, "needed": needed})
    return found


def _what(package: ModuleType, name: str) -> str:
    """The first line of a rule's file, which need not be imported for it."""
    (folder,) = package.__path__
    doc = ast.get_docstring(ast.parse((Path(folder) / f"{name}.py").read_text(encoding="utf-8"))) or ""
    return doc.partition("\n")[0]
