"""`mlpdeploy export`: an artifact for other tools."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from mlpdeploy.artifact.store import Artifact
from mlpdeploy.errors import InputError
from mlpdeploy.export import FORMATS
from mlpdeploy.export.triton import Wanted
from mlpdeploy.selection import Selection
from mlpdeploy.selection.arguments import TAKES
from mlpdeploy.terminal.live import Live
from mlpdeploy.terminal.options import Json, Trust, opening, print_json
from mlpdeploy.terminal.screen import Terminal

if TYPE_CHECKING:
    from mlpdeploy.evidence.proof.ladder import Verification
    from mlpdeploy.progress import Listener

_PANEL = "Triton"

To = Annotated[str, typer.Option("--to", metavar="FORMAT", help=f"For which tools: {', '.join(FORMATS)}.")]
Folder = Annotated[
    Path | None,
    typer.Option("--folder", metavar="DIR", help="A new folder; default: named after network, precision and format."),
]
Repository = Annotated[
    Path | None,
    typer.Option("--repository", metavar="DIR", help="The model repository to add to.", rich_help_panel=_PANEL),
]
ModelName = Annotated[
    str | None,
    typer.Option("--model-name", metavar="NAME", help="Default: the network's name.", rich_help_panel=_PANEL),
]
Labels = Annotated[
    Path | None,
    typer.Option("--labels", metavar="FILE", help="A label for each class, as in predict.", rich_help_panel=_PANEL),
]
Kind = Annotated[
    str,
    typer.Option("--kind", metavar="KIND", help="auto, plan, onnx or python (the engine).", rich_help_panel=_PANEL),
]
Instances = Annotated[
    int,
    typer.Option("--instances", metavar="N", help="How many the server runs; on each GPU.", rich_help_panel=_PANEL),
]
Container = Annotated[
    str | None,
    typer.Option("--container", metavar="YY.MM", help="The server's container, for plans.", rich_help_panel=_PANEL),
]
TensorRT = Annotated[
    str | None,
    typer.Option("--tensorrt", metavar="VERSION", help="Or the server's TensorRT, for plans.", rich_help_panel=_PANEL),
]


@opening(*TAKES["verify"])
def export(
    selection: Selection,
    artifact: Artifact | None,
    *,
    to: To = FORMATS[0],
    folder: Folder = None,
    repository: Repository = None,
    model_name: ModelName = None,
    labels: Labels = None,
    kind: Kind = Wanted.kind,
    instances: Instances = Wanted.instances,
    container: Container = None,
    tensorrt: TensorRT = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Write a built engine for NVIDIA's own tools (trtexec), for a Triton server, or with all that runs it (bundle)."""
    from mlpdeploy.export import export as exported

    wanted = Wanted(model_name, labels, kind, instances, container, tensorrt)
    if to == "triton" and (repository is None or folder is not None):
        raise InputError("--to triton adds to a model repository: give --repository DIR, and no --folder")
    if to != "triton" and (repository is not None or wanted != Wanted()):
        raise InputError(f"--to {to} has none of Triton's options: give --to triton, or leave them out")
    place = repository or folder or Path(f"{selection.folder_name}-{selection.precision}-{to}")
    with Live(Terminal(stderr=True)).shown() as live:
        found = exported(selection, to, place, artifact=artifact, wanted=wanted, trusted=trust, progress=live)
    if as_json:
        print_json(found)
    else:
        print_export(Terminal(), found)


def reduced(
    selection: Selection, verification: Verification, folder: Path, artifact: Artifact | None, live: Listener
) -> dict[str, Any]:
    """What `verify --reduce` wrote, as JSON values; or under `refused` why it wrote nothing."""
    from mlpdeploy.export.reduce import reduce

    try:
        return reduce(selection, verification, folder, artifact=artifact, progress=live)
    except InputError as error:
        return {"refused": str(error)}


def print_reduced(console: Console, found: Mapping[str, Any] | None) -> None:
    """The smallest part that fails, where it lies, and what to type there; or why there is none."""
    if found is None:
        return
    if "refused" in found:
        console.print(f"  no part is written: {escape(found['refused'])}", highlight=False, soft_wrap=True)
        return
    console.print(f"  the smallest part that fails: {escape(found['part'])}", highlight=False, soft_wrap=True)
    print_export(console, found)


def print_export(console: Console, found: Mapping[str, Any]) -> None:
    """What was written, and what to type there."""
    console.print(f"  {escape(found['folder'])}", highlight=False, soft_wrap=True)
    for name in found["files"]:
        console.print(f"    {escape(name)}", highlight=False, soft_wrap=True)
    for line in found.get("notes", ()):
        console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)
    console.print("  type there:")
    for line in found["commands"]:
        console.print(f"    {escape(line)}", highlight=False, soft_wrap=True)
