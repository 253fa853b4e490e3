"""`mlpdeploy push`: an artifact for others."""

from __future__ import annotations

from typing import Annotated

import typer

from mlpdeploy.artifact.lookup import find_artifact
from mlpdeploy.selection import OUT
from mlpdeploy.terminal.options import Json, Out, print_json
from mlpdeploy.terminal.screen import Terminal, escape

Target = Annotated[str, typer.Argument(metavar="NAME_OR_PATH", help="A network's name, or an artifact's folder.")]
Repository = Annotated[str, typer.Argument(metavar="REPO", help="The repository on the Hub: owner/name.")]
License = Annotated[str | None, typer.Option("--license", metavar="ID", help="What the card says, such as apache-2.0.")]
Private = Annotated[bool, typer.Option("--private", help="Make the repository private, where there is none yet.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the model card; ask nobody and upload nothing.")]
Which = Annotated[str | None, typer.Option(help="Which of a network's artifacts.")]


def push(
    target: Target,
    repository: Repository,
    *,
    license: License = None,
    private: Private = False,
    dry_run: DryRun = False,
    precision: Which = None,
    backend: Which = None,
    out: Out = OUT,
    as_json: Json = False,
) -> None:
    """Upload an engine to the Hugging Face Hub, with a model card that is made from its report."""
    from mlpdeploy.export.push import push as pushed

    artifact = find_artifact(target, precision=precision, backend=backend, out=out)
    if not dry_run:
        Terminal(stderr=True).print(f"  uploading to {escape(repository)} on the Hugging Face Hub", highlight=False)
    found = pushed(artifact, repository, license=license, private=private, dry_run=dry_run)
    if as_json:
        print_json(found)
    elif dry_run:
        typer.echo(found["card"], nl=False)
    else:
        Terminal().print(f"  {escape(found['commit'])}", highlight=False, soft_wrap=True)
