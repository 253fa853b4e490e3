"""Which files of a package a module imports, whenever it does, by reading them."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path


def modules(package: Path) -> dict[str, Path]:
    """The files of a package by the names of their modules."""
    paths = sorted(package.rglob("*.py"))
    return {".".join(_parts(path.relative_to(package.parent))): path for path in paths}


def imported(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Those of `known` that a file imports when it runs, wherever in it that stands; not those for types alone."""
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
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and (node.module or "") in known:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else str(node.module)


def closure(names: Iterable[str], known: Mapping[str, Path]) -> set[str]:
    """These modules, the folders that they lie in, and all that they import of `known` but the package itself."""
    found, left = set[str](), [*names]
    while left:
        name = left.pop()
        if name not in found and "." in name:
            found.add(name)
            left += [name.rpartition(".")[0], *imported(known[name], known)]
    return found


def _parts(path: Path) -> tuple[str, ...]:
    return path.parent.parts if path.name == "__init__.py" else path.with_suffix("").parts
