"""Nothing imports backwards: every import of mlpdeploy is read, those inside functions too; and no file is long."""

from __future__ import annotations

from graphlib import TopologicalSorter

import pytest

from mlpdeploy.export.bundle._imports import imported, modules
from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "mlpdeploy"
MODULES = modules(PACKAGE)
LAYERS = (
    ("_version", "errors", "kernels", "precisions", "progress", "shipped"),
    ("system",),
    ("zoo",),
    ("graph",),
    ("engine",),
    ("selection",),
    ("network",),
    ("artifact",),
    ("runtime",),
    ("evidence",),
    ("calibration", "stages"),
    ("search",),
    ("export",),
    ("pipeline",),
    ("commands",),
    ("matrix",),
    ("calling", "handle", "api"),
    ("",),
    ("terminal",),
    ("__main__",),
)
"""Modules and folders of the package, each of which imports nothing of a later line; "" is the package itself."""
LONGEST = 300


IMPORTS = {name: sorted(set(imported(path, MODULES)) - {name}) for name, path in MODULES.items()}


def test_no_module_comes_back_to_itself() -> None:
    TopologicalSorter(IMPORTS).prepare()  # raises CycleError, which names the circle


def layer_of(name: str) -> int:
    """The line of LAYERS that a module stands in, itself or by its folder."""
    part = name.partition(".")[2].partition(".")[0]
    return next(place for place, names in enumerate(LAYERS) if part in names)


def test_nothing_imports_a_later_layer() -> None:
    pairs = ((name, target) for name, targets in IMPORTS.items() for target in targets)
    assert [f"{one} imports {other}" for one, other in pairs if layer_of(other) > layer_of(one)] == []


def within(name: str, *folders: str) -> bool:
    return any(f"{name}.".startswith(f"mlpdeploy.{folder}.") for folder in folders)


@pytest.mark.parametrize(
    ("folder", "later"),
    [
        ("engine.forms", ["engine.backends"]),
        ("engine.onnx", ["engine.backends", "engine.forms"]),
        ("graph.layout", ["graph.matching", "graph.rules", "graph.precision", "graph.quantisation"]),
        ("graph.matching", ["graph.rules", "graph.precision", "graph.quantisation"]),
        ("graph.rules", ["graph.precision", "graph.quantisation"]),
        ("evidence.proof", ["evidence.latency", "evidence.documents", "evidence.report"]),
        ("evidence.latency", ["evidence.report"]),
    ],
)
def test_a_folder_within_a_layer_imports_nothing_of_a_later_one(folder: str, later: list[str]) -> None:
    pairs = ((name, target) for name, targets in IMPORTS.items() if within(name, folder) for target in targets)
    assert [f"{name} imports {target}" for name, target in pairs if within(target, *later)] == []


def test_a_private_module_is_imported_by_its_own_folder_only() -> None:
    pairs = ((name, target) for name, targets in IMPORTS.items() for target in targets)
    foreign = [
        f"{name} imports {target}"
        for name, target in pairs
        if target.rpartition(".")[2].startswith("_") and not f"{name}.".startswith(f"{target.rpartition('.')[0]}.")
    ]
    assert foreign == []


def test_no_file_has_more_than_300_lines() -> None:
    """A longer one is split by what it is about."""
    folders = (REPOSITORY / name for name in ("mlpdeploy", "plugins", "benchmarks", "tests"))
    paths = sorted(path for folder in folders for path in folder.rglob("*.py"))
    lines = {path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8").count("\n") for path in paths}
    longer = [f"{path} has {count}" for path, count in lines.items() if count > LONGEST]
    assert not longer, "; ".join(longer)
