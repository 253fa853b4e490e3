"""The tables of README and docs, and what recipes and searches know, from the results: no number is typed by hand.

python -m benchmarks.tables            # rewrite the tables between `<!-- table:NAME -->` and `<!-- /table:NAME -->`
python -m benchmarks.tables --check    # exit 1 where a page does not show the results
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.network_tables import (
    accuracy4,
    engines,
    executed,
    families,
    fp4,
    generated,
    graph,
    launches,
    moved,
    packages,
    remaining,
    weights,
    zoo,
)
from benchmarks.recorded import recorded, worth
from benchmarks.time_tables import (
    build,
    bundle,
    call,
    coverage,
    cpu,
    evaluate,
    gate,
    install,
    matrix,
    quantisation,
    rules,
    searched,
    summary,
)
from mlpdeploy.search.promise import WORTH
from mlpdeploy.zoo.recipe import folder

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
FILLED = (*PAGES, *sorted(folder().glob("*.toml")), WORTH)
TABLES: dict[str, tuple[Callable[..., list[str]], tuple[str, ...]]] = {
    "graph": (graph, ("graph",)),
    "rules": (rules, ("rules",)),
    "search": (searched, ("search",)),
    "cpu": (cpu, ("cpu",)),
    "call": (call, ("call",)),
    "matrix": (matrix, ("matrix",)),
    "summary": (summary, ("graph", "launches", "cpu")),
    "build": (build, ("build",)),
    "install": (install, ("install",)),
    "bundle": (bundle, ("bundle", "install")),
    "evaluate": (evaluate, ("evaluate",)),
    "coverage": (coverage, ("coverage",)),
    "zoo": (zoo, ("zoo",)),
    "executed": (executed, ("executed",)),
    "quantisation": (quantisation, ("quantisation",)),
    "engines": (engines, ("quantisation",)),
    "weights": (weights, ("quantisation",)),
    "fp4": (fp4, ("quantisation",)),
    "accuracy4": (accuracy4, ("quantisation",)),
    "launches": (launches, ("launches",)),
    "moved": (moved, ("moved",)),
    "generated": (generated, ("inductor_structure",)),
    "packages": (packages, ("inductor_packages",)),
    "gate": (gate, ("gate",)),
    "families": (families, ("zoo", "graph", "executed")),
    "remaining": (remaining, ("graph",)),
}
"""What makes a table, and from which results."""


def rewritten(text: str, results: Path = RESULTS) -> str:
    """A page with its tables filled. Raises ValueError where markers are unknown or not closed."""
    opened, closed = (re.findall(rf"<!-- {slash}table:(\w+) -->", text) for slash in ("", "/"))
    if opened != closed or not set(opened) <= set(TABLES):
        raise ValueError(f"markers of tables do not match: opened {opened}, closed {closed}, known {[*TABLES]}")
    for name in opened:
        make, files = TABLES[name]
        documents = (json.loads((results / f"{file}.json").read_text(encoding="utf-8")) for file in files)
        lines = "\n".join(make(*documents))
        pattern = re.compile(rf"(<!-- table:{name} -->\n).*?(<!-- /table:{name} -->)", re.DOTALL)
        text = pattern.sub(lambda match, lines=lines: f"{match[1]}{lines}\n{match[2]}", text)  # type: ignore[misc]
    return text


def filled(path: Path) -> str:
    """What a page, a family's recipes or what searches expect should read."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return rewritten(text)
    graphs, launched, ruled = (
        json.loads((RESULTS / f"{one}.json").read_text(encoding="utf-8"))["results"]
        for one in ("graph", "launches", "rules")
    )
    if path == WORTH:
        return json.dumps(worth(ruled), indent=1, sort_keys=True) + "\n"
    return recorded(text, graphs, launched)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 where the tables are stale")
    arguments = parser.parse_args()
    stale = {path: text for path in FILLED if (text := filled(path)) != path.read_text(encoding="utf-8")}
    for path, text in () if arguments.check else stale.items():
        path.write_text(text, encoding="utf-8")
    if arguments.check and stale:
        names = ", ".join(path.name for path in stale)
        print(f"{names}: other numbers than benchmarks/results, run `python -m benchmarks.tables`")
    return int(arguments.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
