"""What a build rewrites: the rules of the graph, phase by phase, and the forms of the file, each with its engines."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType
from typing import Any

from mlpdeploy.engine import form, forms
from mlpdeploy.engine.backend import backends
from mlpdeploy.engine.nvidia import CURRENT

GRAPH, FILE = "graph", "file"


def rulebook() -> list[dict[str, Any]]:
    """Every rule and form as JSON values: its name, what it does, what it rewrites, and for which engines it is on.

    `phase` is that of a rule of the graph, None of a form. `default`: whether it runs without being asked for, for some
    engine. What an engine has otherwise where it is built for this machine's GPU is an engine of its own. `needed`
    are the engines that refuse files, or answer wrongly, without a form.
    """
    return [*_rules(), *_forms()]


def _rules() -> list[dict[str, Any]]:
    from mlpdeploy.graph import rules
    from mlpdeploy.graph.rewrite import all_rules

    on, found = _on(), []
    for name, rule in all_rules().items():
        engines = [engine for engine, names in on.items() if name in names]
        row = {"name": name, "what": _what(rules, name), "rewrites": GRAPH, "phase": rule.phase}
        found.append({**row, "default": bool(engines), "engines": engines, "needed": []})
    return found


def _on() -> dict[str, set[str]]:
    """By engine, the rules that run by default."""
    from mlpdeploy.graph.rewrite import on_by_default

    found = dict[str, set[str]]()
    for backend in backends().values():
        for gpus, name in (((), backend.name), ((CURRENT,), f"{backend.name} for a GPU")):
            on = on_by_default(backend.off_for(gpus), backend.carries_kernel(gpus))
            if on != found.get(backend.name):
                found[name] = on
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
