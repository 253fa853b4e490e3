"""The command line: thin over the functions of `pipeline`, which are imported when a command runs.

Tables go to stdout and progress to stderr; with --json, stdout holds exactly one JSON document. The exit codes are
those of `errors`: 0 done, 1 a gate failed, 2 wrong usage or bad input, 3 this machine lacks something; 70 is an error
that mlpdeploy did not expect, 130 an interruption, and 143 the end that another process asked for.
"""

from __future__ import annotations

import atexit
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mlpdeploy import __version__, commands, pipeline
from mlpdeploy.artifact.lookup import find_artifact
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.commands.rulebook import rulebook
from mlpdeploy.engine import nvidia
from mlpdeploy.errors import InputError, MlpdeployError
from mlpdeploy.export.folders import require_new
from mlpdeploy.search import SECONDS, TACTICS
from mlpdeploy.selection import OUT, Selection
from mlpdeploy.selection.arguments import TAKES
from mlpdeploy.system import streams
from mlpdeploy.system.leftovers import FULL
from mlpdeploy.system.processes import Interruption, Terminated, unwinding
from mlpdeploy.system.text import formatted
from mlpdeploy.terminal.argv import device_first, require_words, with_seconds
from mlpdeploy.terminal.artifacts import print_artifact, print_build, print_doctor, print_verification
from mlpdeploy.terminal.catalogue import print_catalogue, print_rulebook
from mlpdeploy.terminal.cli_evaluate import evaluate
from mlpdeploy.terminal.cli_export import export, print_reduced, reduced
from mlpdeploy.terminal.cli_matrix import matrix
from mlpdeploy.terminal.cli_measure import bench, history, regress, sensitivity
from mlpdeploy.terminal.cli_predict import predict
from mlpdeploy.terminal.cli_push import push
from mlpdeploy.terminal.live import Live
from mlpdeploy.terminal.options import Data, Json, Out, Trust, choosing, opening, print_json, printing, require_room
from mlpdeploy.terminal.screen import Terminal

UNEXPECTED, INTERRUPTED = 70, 130
COMPLETION, COMPLETING = "_MLPDEPLOY_COMPLETE", {"--install-completion", "--show-completion"}
"""How a shell asks for what may follow, and how its user asks for that."""


class _Group(TyperGroup):
    """Commands whose help shows no value of options that take none."""

    def get_params(self, ctx: Any) -> Any:
        return _shown(super().get_params(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        if found is not None:
            _shown(found.get_params(ctx))
        return found


def _shown(parameters: list[Any]) -> list[Any]:
    for one in parameters:
        if getattr(one, "is_flag", False):
            one.metavar = ""
    return parameters


app = typer.Typer(
    name="mlpdeploy",
    cls=_Group,
    help="Compile MLP-style vision networks into inference engines, and prove that they compute the same.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Pattern = Annotated[str | None, typer.Argument(help="Only names and families with this in them; shows more of each.")]
Rules = Annotated[bool, typer.Option("--rules", help="List what a build rewrites, and for which engines.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")]
Device = Annotated[
    str | None, typer.Option(metavar="N", help="Which NVIDIA GPU, by its number or UUID; may stand anywhere.")
]
Search = Annotated[
    float | None,
    typer.Option(
        metavar="[SECONDS]",
        help=f"Find by measurement which rules and forms pay, for {SECONDS:g} s or as many as are given.",
    ),
]
Tactics = Annotated[
    float | None, typer.Option(metavar="[SECONDS]", help=f"Try TensorRT's build routes, for {TACTICS:g} s or as given.")
]
Version = Annotated[bool, typer.Option("--version", help="Show the version and exit.")]


@app.callback(help=str(app.info.help), invoke_without_command=True)
def _root(context: typer.Context, debug: Debug = False, device: Device = None, version: Version = False) -> None:
    """`--debug` and `--device` may stand anywhere (see `main`); without a command there is help."""
    if device is not None:
        nvidia.see(device)
    if version:
        typer.echo(f"mlpdeploy {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("list")
def list_command(pattern: Pattern = None, rules: Rules = False, as_json: Json = False) -> None:
    """List the recipes: what they cost, what was published, and what the rules do to each; or the rules."""
    if rules and pattern is not None:
        raise InputError("list --rules lists all rules: leave the pattern out")
    found = rulebook() if rules else commands.catalogue(pattern)
    if as_json:
        print_json(found)
    elif rules:
        print_rulebook(Terminal(), found)
    else:
        print_catalogue(Terminal(), found, detailed=pattern is not None)


@app.command()
@choosing(*TAKES["build"])
def build(
    selection: Selection,
    *,
    force: Annotated[bool, typer.Option("--force", help="Build even if it is built already.")] = False,
    worth: Annotated[
        bool, typer.Option(help="INT8, FP8: time it beside FP16 and FP32 on the engines that run here.")
    ] = True,
    search: Search = None,
    tactics: Tactics = None,
    as_json: Json = False,
) -> None:
    """Build an engine, with its ONNX file, manifest and report; the same build again is found, not built."""
    with Live(Terminal(stderr=True)).shown() as live:
        artifact = pipeline.build(selection, force=force, worth=worth, search=search, tactics=tactics, progress=live)
    if as_json:
        print_json({"cached": artifact.cached, "folder": str(artifact.folder), "manifest": artifact.manifest})
    else:
        print_build(Terminal(), str(artifact.folder), artifact.manifest, artifact.cached)


@app.command()
@opening(*TAKES["verify"])
def verify(
    selection: Selection,
    artifact: Artifact | None,
    *,
    data: Data = None,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the largest batch.")] = False,
    reduce: Annotated[
        Path | None,
        typer.Option("--reduce", metavar="DIR", help="Where a stage fails: write the smallest part that does."),
    ] = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Prove that a built engine computes what the network computes; give the options of its build, or its folder."""
    if reduce is not None:
        require_new(reduce)
    with Live(Terminal(stderr=True)).shown() as live:
        verification = pipeline.verify(
            selection, artifact=artifact, data=data, quick=quick, trusted=trust, progress=live
        )
        document = verification.to_json() | {"name": selection.name, "weights": selection.weights()}
        if reduce is not None:
            document["reduced"] = reduced(selection, verification, reduce, artifact, live)
    if as_json:
        print_json(document)
    else:
        print_verification(Terminal(), f"{selection.name} {selection.precision}", selection.weights(), document)
        print_reduced(Terminal(), document.get("reduced"))
    if not verification.passed:
        raise typer.Exit(1)


for command in (bench, regress, history, sensitivity, export, push, predict, evaluate, matrix):
    app.command()(command)


@app.command()
def inspect(
    target: Annotated[str, typer.Argument(metavar="NAME_OR_PATH", help="A network's name, or an artifact's folder.")],
    precision: Annotated[str | None, typer.Option(help="Which of a network's artifacts.")] = None,
    backend: Annotated[str | None, typer.Option(help="Which of a network's artifacts.")] = None,
    out: Out = OUT,
    as_json: Json = False,
) -> None:
    """Show what is in an artifact: versions, batch sizes, dtypes, rules, and what verification found."""
    found = commands.inspect(target, precision=precision, backend=backend, out=out)
    if as_json:
        print_json(found)
    else:
        print_artifact(Terminal(), found)


@app.command()
def report(
    target: Annotated[str, typer.Argument(metavar="NAME_OR_PATH", help="A network's name, or an artifact's folder.")],
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write only the page, to FILE.")] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write only the Markdown, to FILE.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="Which of a network's artifacts.")] = None,
    backend: Annotated[str | None, typer.Option(help="Which of a network's artifacts.")] = None,
    out: Out = OUT,
    as_json: Json = False,
) -> None:
    """Write what is known about an engine as one HTML page and as Markdown, beside the engine unless FILE is given."""
    from mlpdeploy.evidence.report import reporting
    from mlpdeploy.terminal.artifacts import print_report

    require_room(html, markdown)
    artifact = find_artifact(target, precision=precision, backend=backend, out=out)
    found = reporting.report(artifact, html=html, markdown=markdown)
    if as_json:
        print_json(found)
    else:
        print_report(Terminal(), found)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show what this machine has, which backends work on it, and what to install for the others."""
    found = commands.doctor()
    if as_json:
        print_json(found)
    else:
        print_doctor(Terminal(), found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code; expected errors never show a traceback."""
    streams.require()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if COMPLETION in os.environ or COMPLETING & set(arguments):
        app(args=arguments, prog_name="mlpdeploy")
    warnings.formatwarning = formatted
    debug = "--debug" in arguments or os.environ.get("MLPDEPLOY_DEBUG") == "1"
    code = _run([argument for argument in arguments if argument != "--debug"], debug)
    atexit.register(streams.end)  # the last one that is registered runs first
    sys.exit(code)


def _run(arguments: list[str], debug: bool) -> int:
    interruption = Interruption()
    try:
        require_words(arguments)
        words = with_seconds(device_first(arguments))
        with unwinding() as interruption:
            code = app(args=words, prog_name="mlpdeploy", standalone_mode=False)
            with streams.as_long_as_read():
                pass  # what is still to be written
        if code == INTERRUPTED:  # typer's answer to KeyboardInterrupt
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except MlpdeployError as error:
        return _fail(error, str(error), error.exit_code, arguments)
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # who read the help has left
            return 0
        return _fail(error, f"code that was called ended the process: sys.exit({error.code!r})", 2, arguments)
    except (KeyboardInterrupt, typer.Abort) as error:
        text = f"interrupted{interruption.where}; the last good artifact is untouched"
        return _fail(error, text, INTERRUPTED, arguments)
    except Terminated as error:
        return _fail(error, str(error), error.exit_code, arguments)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            where = f" for {error.filename}" if error.filename else ""
            return _fail(error, f"no space is left{where} ({error.strerror}): free some", 2, arguments)
        usage = getattr(error, "format_message", None)  # what typer raises where it was called wrongly
        if usage is not None:
            command = getattr(getattr(error, "ctx", None), "command_path", "mlpdeploy")
            return _fail(error, f"{usage().rstrip('.')}; see `{command} --help`", 2, arguments)
        if debug:
            raise
        text = f"unexpected {type(error).__name__}: {error} (this is a defect of mlpdeploy; --debug shows where)"
        return _fail(error, " ".join(text.split()), UNEXPECTED, arguments)


def _fail(error: BaseException, text: str, code: int, arguments: list[str]) -> int:
    """Say what happened on stderr, and on stdout too where a program waits for JSON."""
    first, *details = text.splitlines() or [""]
    said = "\n".join([f"error: {first}", *(f"  {line.strip()}" for line in details)])
    Terminal(stderr=True, soft_wrap=True).print(said, style="red", markup=False, highlight=False)
    if "--json" in arguments:
        with printing():
            print_json({"error": {"type": type(error).__name__, "message": text, "exit_code": code}})
    return code
