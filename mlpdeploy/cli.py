"""The command line: thin over the functions of `pipeline`, which are imported when a command runs.

Tables go to stdout and progress to stderr; with --json, stdout holds exactly one JSON document. The exit codes are
those of `errors`: 0 done, 1 a gate failed, 2 wrong usage or bad input, 3 this machine lacks something; 70 is an error
that mlpdeploy did not expect, and 130 an interruption.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mlpdeploy import pipeline
from mlpdeploy.console import Live, print_artifact, print_build, print_doctor, print_verification
from mlpdeploy.console_int8 import print_sensitivity
from mlpdeploy.errors import MlpdeployError
from mlpdeploy.listing import print_catalogue
from mlpdeploy.selection import BATCH, OUT, Selection, parse_shape

UNEXPECTED, INTERRUPTED = 70, 130

app = typer.Typer(
    name="mlpdeploy",
    help="Compile MLP-style vision networks into inference engines, and prove that they compute the same.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Name = Annotated[str, typer.Argument(help="A recipe (see list), timm:<model>, or package.module:factory.")]
Precision = Annotated[str, typer.Option(help="fp32, tf32, fp16, bf16 or int8.")]
BackendName = Annotated[
    str, typer.Option("--backend", help="auto, tensorrt, tensorrt-rtx, openvino, onnxruntime or inductor.")
]
BatchSizes = Annotated[str, typer.Option("--batch", metavar="MIN:OPT:MAX", help="Batch sizes, or one number.")]
Checkpoint = Annotated[Path | None, typer.Option(metavar="FILE", help="Weights: safetensors, or torch's format.")]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Fetch timm's pretrained weights.")]
ImageSize = Annotated[int | None, typer.Option(metavar="N", help="Height and width of the images.")]
NumClasses = Annotated[int | None, typer.Option(metavar="N", help="Classes, where the recipe's do not fit.")]
InputShape = Annotated[
    str | None, typer.Option(metavar="C,H,W", help="Input of your own network, where it cannot be known.")
]
Gpu = Annotated[str | None, typer.Option("--gpu", metavar="SM,...", help="GPUs to build for, such as sm86,sm89.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Where artifacts lie.")]
Seed = Annotated[int, typer.Option(help="Seed of random weights and inputs.")]
DisableRule = Annotated[list[str] | None, typer.Option(metavar="NAME", help="Leave a rewrite rule out; repeatable.")]
EnableRule = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Run a rewrite rule that is off by default; repeatable.")
]
Io = Annotated[str, typer.Option("--io", help="Dtype of inputs and outputs: fp32, fp16 or bf16.")]
Level = Annotated[int | None, typer.Option(metavar="0..5", help="TensorRT's builder optimisation level.")]
Calibration = Annotated[
    str | None,
    typer.Option(metavar="DATA", help="INT8: a folder of images, an .npz file, digits, or random (noise)."),
]
Calibrator = Annotated[str, typer.Option(help="INT8: auto, max, percentile, entropy or mse.")]
MaxDrop = Annotated[float | None, typer.Option(metavar="POINTS", help="INT8: what top-1 may lose on labelled data.")]
MinSqnr = Annotated[float | None, typer.Option(metavar="DB", help="INT8: least signal to noise of the output.")]
Pattern = Annotated[str | None, typer.Argument(help="Only names and families with this in them; shows more of each.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout, and nothing else there.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")]


@app.callback(help=str(app.info.help))
def _root(debug: Debug = False) -> None:
    """`--debug` is read by `main`, wherever it stands."""


@app.command("list")
def list_command(pattern: Pattern = None, as_json: Json = False) -> None:
    """List the recipes: what they cost, what was published, and what the rules do to each."""
    catalogue = pipeline.catalogue(pattern)
    if as_json:
        _print_json(catalogue)
    else:
        print_catalogue(Console(), catalogue, detailed=pattern is not None)


@app.command()
def build(
    name: Name,
    precision: Precision = "fp16",
    backend: BackendName = "auto",
    batch: BatchSizes = BATCH,
    checkpoint: Checkpoint = None,
    pretrained: Pretrained = False,
    image_size: ImageSize = None,
    num_classes: NumClasses = None,
    input_shape: InputShape = None,
    gpu: Gpu = None,
    out: Out = OUT,
    seed: Seed = 0,
    disable_rule: DisableRule = None,
    enable_rule: EnableRule = None,
    io: Io = "fp32",
    level: Level = None,
    calibration: Calibration = None,
    calibrator: Calibrator = "auto",
    max_drop: MaxDrop = None,
    min_sqnr: MinSqnr = None,
    force: Annotated[bool, typer.Option("--force", help="Build even if it is built already.")] = False,
    as_json: Json = False,
) -> None:
    """Build an engine, with its ONNX file, manifest and report; the same build again is found, not built."""
    selection = _selection(locals())
    with Live(Console(stderr=True)).shown() as live:
        artifact = pipeline.build(selection, force=force, progress=live)
    if as_json:
        _print_json({"cached": artifact.cached, "folder": str(artifact.folder), "manifest": artifact.manifest})
    else:
        print_build(Console(), str(artifact.folder), artifact.manifest, artifact.cached)


@app.command()
def verify(
    name: Name,
    precision: Precision = "fp16",
    backend: BackendName = "auto",
    batch: BatchSizes = BATCH,
    checkpoint: Checkpoint = None,
    pretrained: Pretrained = False,
    image_size: ImageSize = None,
    num_classes: NumClasses = None,
    input_shape: InputShape = None,
    gpu: Gpu = None,
    out: Out = OUT,
    seed: Seed = 0,
    disable_rule: DisableRule = None,
    enable_rule: EnableRule = None,
    io: Io = "fp32",
    level: Level = None,
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Images to verify on.")] = None,
    as_json: Json = False,
) -> None:
    """Prove that a built engine computes what the network computes; give the options that it was built with."""
    selection = _selection(locals())
    with Live(Console(stderr=True)).shown() as live:
        verification = pipeline.verify(selection, data=data, progress=live)
    document = verification.to_json() | {"name": selection.name, "weights": selection.weights()}
    if as_json:
        _print_json(document)
    else:
        print_verification(Console(), f"{selection.name} {precision}", selection.weights(), document)
    if not verification.passed:
        raise typer.Exit(1)


@app.command()
def sensitivity(
    name: Name,
    calibration: Calibration = None,
    calibrator: Calibrator = "auto",
    checkpoint: Checkpoint = None,
    pretrained: Pretrained = False,
    image_size: ImageSize = None,
    num_classes: NumClasses = None,
    input_shape: InputShape = None,
    out: Out = OUT,
    seed: Seed = 0,
    disable_rule: DisableRule = None,
    enable_rule: EnableRule = None,
    as_json: Json = False,
) -> None:
    """Rank a network's modules by what INT8 costs each alone, as a table and a picture."""
    selection = _selection({**locals(), "precision": "int8"})
    with Live(Console(stderr=True)).shown() as live:
        found, picture = pipeline.sensitivity(selection, progress=live)
    if as_json:
        _print_json(found | {"picture": str(picture)})
    else:
        print_sensitivity(Console(), found, str(picture))


@app.command()
def inspect(
    target: Annotated[str, typer.Argument(metavar="NAME_OR_PATH", help="A network's name, or an artifact's folder.")],
    precision: Annotated[str | None, typer.Option(help="Which of a network's artifacts.")] = None,
    backend: Annotated[str | None, typer.Option(help="Which of a network's artifacts.")] = None,
    out: Out = OUT,
    as_json: Json = False,
) -> None:
    """Show what is in an artifact: versions, batch sizes, dtypes, rules, and what verification found."""
    found = pipeline.inspect(target, precision=precision, backend=backend, out=out)
    if as_json:
        _print_json(found)
    else:
        print_artifact(Console(), found)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show what this machine has, which backends work on it, and what to install for the others."""
    found = pipeline.doctor()
    if as_json:
        _print_json(found)
    else:
        print_doctor(Console(), found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code; expected errors never show a traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments or os.environ.get("MLPDEPLOY_DEBUG") == "1"
    sys.exit(_run([argument for argument in arguments if argument != "--debug"], debug))


def _run(arguments: list[str], debug: bool) -> int:
    try:
        code = app(args=arguments, prog_name="mlpdeploy", standalone_mode=False)
        if code == INTERRUPTED:  # typer's answer to KeyboardInterrupt
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except MlpdeployError as error:
        return _fail(error, str(error), error.exit_code, arguments)
    except (KeyboardInterrupt, typer.Abort) as error:
        return _fail(error, "interrupted; the last good artifact is untouched", INTERRUPTED, arguments)
    except Exception as error:
        usage = getattr(error, "format_message", None)  # what typer raises where it was called wrongly
        if usage is not None:
            # Without any argument the help was shown, and there is nothing to add.
            return _fail(error, f"{usage().rstrip('.')}; see `mlpdeploy --help`", 2, arguments) if arguments else 2
        if debug:
            raise
        text = f"unexpected {type(error).__name__}: {error} (this is a defect of mlpdeploy; --debug shows where)"
        return _fail(error, " ".join(text.split()), UNEXPECTED, arguments)


def _fail(error: BaseException, text: str, code: int, arguments: list[str]) -> int:
    """Say what happened on stderr, and on stdout too where a program waits for JSON."""
    Console(stderr=True, soft_wrap=True).print(f"error: {text}", style="red", markup=False, highlight=False)
    if "--json" in arguments:
        _print_json({"error": {"type": type(error).__name__, "message": text, "exit_code": code}})
    return code


def _selection(options: dict[str, Any]) -> Selection:
    """The selection from a command's own arguments."""
    shape, gpus = options["input_shape"], options.get("gpu")
    return Selection(
        **{option: options[option] for option in SAME if option in options},
        input_shape=None if shape is None else parse_shape(shape),
        gpus=() if gpus is None else tuple(part.strip() for part in gpus.split(",")),
        disabled_rules=tuple(sorted(options["disable_rule"] or ())),
        enabled_rules=tuple(sorted(options["enable_rule"] or ())),
    )


SAME = (
    "name", "precision", "backend", "batch", "checkpoint", "pretrained", "image_size", "num_classes", "out", "seed",
    "io", "level", "calibration", "calibrator", "max_drop", "min_sqnr",
)  # fmt: skip
"""Arguments of commands that a selection takes as they are; not every command has all."""


def _print_json(document: Any) -> None:
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
