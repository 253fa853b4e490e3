"""`mlpdeploy evaluate`: how often a built engine is right on a folder of classes, beside PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mlpdeploy.artifact.store import Artifact
from mlpdeploy.evidence.report.words import EVALUATED, evaluated_lines, evaluated_rows
from mlpdeploy.selection import Selection
from mlpdeploy.selection.arguments import TAKES
from mlpdeploy.selection.parse import parse_words
from mlpdeploy.terminal.artifacts import SIMPLE
from mlpdeploy.terminal.live import Live
from mlpdeploy.terminal.options import Json, Trust, opening, print_json
from mlpdeploy.terminal.screen import Terminal, escape

Classes = Annotated[
    Path, typer.Option("--data", metavar="FOLDER", help="Images, in a sub-folder for each class.", show_default=False)
]
Only = Annotated[
    str | None, typer.Option("--only", metavar="NAME,...", help="engine, typed, pytorch: leave the others out.")
]
ClassMap = Annotated[
    Path | None,
    typer.Option(
        "--class-map", metavar="FILE",
        help="The sub-folders' names in the order of the network's classes: a line each, or JSON.",
    ),
]  # fmt: skip
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", help="Images, spread evenly; default: all.")]
Workers = Annotated[
    int | None, typer.Option("--workers", metavar="N", help="Processes that read images; default: half the cores.")
]
Restart = Annotated[bool, typer.Option("--restart", help="Begin anew where an evaluation was interrupted.")]


@opening(*(name for name in TAKES["verify"] if name != "limit"))
def evaluate(
    selection: Selection,
    artifact: Artifact | None,
    *,
    data: Classes,
    only: Only = None,
    class_map: ClassMap = None,
    limit: Limit = None,
    workers: Workers = None,
    restart: Restart = False,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Count how often an engine, its typed graph and PyTorch are right; exit 1 where the engine is worse."""
    from mlpdeploy.commands.evaluating import CONTENDERS
    from mlpdeploy.commands.evaluating import evaluate as evaluated

    with Live(Terminal(stderr=True)).shown() as live:
        found = evaluated(
            selection, data, artifact=artifact, only=tuple(CONTENDERS) if only is None else parse_words(only),
            class_map=class_map, limit=limit, workers=workers, restart=restart, trusted=trust, progress=live,
        )  # fmt: skip
    document = found.to_json() | {"name": selection.name, "weights": selection.weights()}
    if as_json:
        print_json(document)
    else:
        print_evaluation(Terminal(), f"{selection.name} {selection.precision}", document)
    if not found.passed:
        raise typer.Exit(1)


def print_evaluation(console: Console, name: str, document: Mapping[str, Any]) -> None:
    """Each contender's accuracy with its interval, how engine and PyTorch differ, and the verdict."""
    title = f"[bold]{escape(name)}[/] on {document['images']} images, {escape(document['weights'])}"
    console.print(title, highlight=False, soft_wrap=True)
    table = Table(**SIMPLE)
    for place, column in enumerate(EVALUATED):
        table.add_column(column if place else f"  {column}", justify="right" if place else "left")
    for first, *cells in evaluated_rows(document):
        table.add_row(f"  {escape(first)}", *cells)
    console.print(table)
    for line in evaluated_lines(document):
        console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)
    colour = "green" if document["passed"] else "red"
    console.print(f"[bold {colour}]{escape(document['verdict'])}[/]", highlight=False)
