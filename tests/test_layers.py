"""Nothing imports backwards: every import of mlpdeploy is read, those inside functions too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "mlpdeploy"
MODULES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
LAYERS = ("zoo", "graph", "engine", "evidence")
"""Folders, each of which imports nothing of a later one."""


def imported(path: Path) -> Iterator[str]:
    """The modules of mlpdeploy that a file imports when it runs, wherever in it that stands."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "") in MODULES:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else str(node.module)


IMPORTS = {name: sorted(set(imported(path)) - {name}) for name, path in MODULES.items()}


def test_no_module_comes_back_to_itself() -> None:
    TopologicalSorter(IMPORTS).prepare()  # raises CycleError, which names the circle


def within(name: str, *folders: str) -> bool:
    return any(f"{name}.".startswith(f"mlpdeploy.{folder}.") for folder in folders)


def backwards(folder: str, *later: str) -> list[str]:
    pairs = ((name, target) for name, targets in IMPORTS.items() if within(name, folder) for target in targets)
    return [f"{name} imports {target}" for name, target in pairs if within(target, *later)]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_folder_imports_nothing_of_a_later_one(layer: str) -> None:
    assert backwards(layer, *LAYERS[LAYERS.index(layer) + 1 :]) == []


def test_forms_know_no_engine_and_the_graph_no_command() -> None:
    assert backwards("engine.forms", "engine.backends") == []
    assert backwards("graph", "pipeline", "stages", "commands", "cli") == []
    assert backwards("evidence", "pipeline", "stages", "commands", "cli") == []
    assert [
        target for target in IMPORTS["mlpdeploy.pipeline"] if within(target, "commands", "benching", "gating")
    ] == []
