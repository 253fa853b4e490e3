"""`mlpdeploy predict`: what a built engine sees in images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mlpdeploy.artifact.store import Artifact
from mlpdeploy.selection import Selection
from mlpdeploy.selection.arguments import TAKES
from mlpdeploy.terminal.live import Live
from mlpdeploy.terminal.options import Json, Trust, opening, print_json
from mlpdeploy.terminal.screen import Terminal, escape

if TYPE_CHECKING:
    from mlpdeploy.commands.predicting import Predictions

Images = Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Files, and folders of them in any layout.")]
Labels = Annotated[
    Path | None,
    typer.Option(
        "--labels", metavar="FILE",
        help="What the classes are called: a line each, or JSON; default: ImageNet's words for a thousand.",
    ),
]  # fmt: skip
Top = Annotated[int, typer.Option("--top", metavar="K", help="How many classes are shown.")]
SKIPPED = 5
"""Unreadable images that are named one by one."""


@opening(*(name for name in TAKES["verify"] if name != "limit"), network=False)
def predict(
    selection: Selection,
    artifact: Artifact | None,
    *,
    images: Images,
    labels: Labels = None,
    top: Top = 5,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Show the most probable classes of images, by a built engine."""
    from mlpdeploy.commands.predicting import predict as predicted

    with Live(Terminal(stderr=True)).shown() as live:
        found = predicted(
            selection, images, artifact=artifact, labels=labels, top=top, trusted=trust, progress=live
        )  # fmt: skip
    if as_json:
        print_json(found.to_json())
    else:
        print_predictions(Terminal(), found)


def print_predictions(console: Console, found: Predictions) -> None:
    """Each image with its classes, what was left out, and what the weights are."""
    for image in found.images:
        console.print(f"[bold]{escape(str(image.file))}[/]", highlight=False, soft_wrap=True)
        for guess in image.guesses:
            name = f"class {guess.index}" if guess.label is None else guess.label
            console.print(f"  {guess.probability:6.1%}  {escape(name)}", highlight=False, soft_wrap=True)
    for skipped in found.skipped[:SKIPPED]:
        console.print(f"skipped {escape(str(skipped.file))}: {escape(skipped.reason)}", highlight=False, soft_wrap=True)
    if (more := len(found.skipped) - SKIPPED) > 0:
        console.print(f"skipped {more} more that cannot be read", highlight=False)
    console.print(f"{escape(found.network)} {found.engine}, {escape(found.weights)}", highlight=False, soft_wrap=True)
