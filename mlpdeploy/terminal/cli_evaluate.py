"""`mlpdeploy evaluate`: how often a built engine is right on a folder of classes, beside PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mlpdeploy.artifact.store import Artifact
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
    for column in ("  contender", ">top-1", "95 % interval", ">top-5", "95 % interval"):
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    for one in document["contenders"]:
        table.add_row(f"  {one['name']}", *(cell for key in ("top1", "top5") for cell in _share(one[key])))
    console.print(table)
    for line in (*document["data"], *_found(document)):
        console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)
    colour = "green" if document["passed"] else "red"
    console.print(f"[bold {colour}]{escape(document['verdict'])}[/]", highlight=False)


def _share(share: Mapping[str, Any]) -> tuple[str, str]:
    low, high = share["interval"]
    return f"{share['share']:.2%}", f"{low:.2%} to {high:.2%}"


def _found(document: Mapping[str, Any]) -> Iterator[str]:
    """What else an evaluation found, line by line."""
    if (paired := document["paired"]) is not None:
        yield f"engine and PyTorch agree on the first class of {document['agreement']:.2%}"
        only = f"only the engine right: {paired['engine_only']}, only PyTorch: {paired['pytorch_only']}"
        yield f"{only}; McNemar's exact test: p = {paired['p_value']:.2g}"
    for one in document["contenders"]:
        if one["not_finite"]:
            yield f"{one['name']}: scores of {one['not_finite']} images are not all finite: run verify"
    for skipped in document["skipped"]:
        yield f"skipped {skipped['file']}: {skipped['reason']}"
    if (more := document["unread"] - len(document["skipped"])) > 0:
        yield f"skipped {more} more that cannot be read"
