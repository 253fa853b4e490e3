"""What the commands share: their options, and the selection that these make."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from mlpdeploy import results, store, trust
from mlpdeploy.errors import InputError
from mlpdeploy.lookup import is_path
from mlpdeploy.recipe import kind, recipes
from mlpdeploy.selection import IMAGES, PRECISIONS, Selection, parse_channels, parse_shape
from mlpdeploy.store import Artifact
from mlpdeploy.terminal import Terminal


def _begin(incomplete: str, known: Iterable[str]) -> list[str]:
    return [one for one in known if one.startswith(incomplete)]


def _recipes(incomplete: str) -> list[str]:
    return _begin(incomplete, (name for recipe in recipes().values() for name in recipe.names))


def _precisions(incomplete: str) -> list[str]:
    return _begin(incomplete, PRECISIONS)


Name = Annotated[
    str,
    typer.Argument(help="A recipe (see list), timm:<model>, or package.module:factory.", autocompletion=_recipes),
]
NameOrPath = Annotated[
    str,
    typer.Argument(
        metavar="NAME_OR_PATH",
        help="A network's name, as `build` takes it, or the folder of its artifact, without the options of the build.",
        autocompletion=_recipes,
    ),
]
Precision = Annotated[str, typer.Option(help="fp32, tf32, fp16, bf16 or int8.", autocompletion=_precisions)]
BackendName = Annotated[
    str,
    typer.Option("--backend", help="auto, tensorrt, tensorrt-rtx, torch-tensorrt, openvino, onnxruntime or inductor."),
]
BatchSizes = Annotated[str, typer.Option("--batch", metavar="MIN:OPT:MAX", help="Batch sizes, or one number.")]
Checkpoint = Annotated[Path | None, typer.Option(metavar="FILE", help="Weights: safetensors, torch's format or .npz.")]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Fetch timm's pretrained weights.")]
Ema = Annotated[
    bool | None,
    typer.Option("--ema/--no-ema", help="Whether averaged weights of the checkpoint are taken; default: if any."),
]
ImageSize = Annotated[int | None, typer.Option(metavar="N", help="Height and width of the images.")]
NumClasses = Annotated[int | None, typer.Option(metavar="N", help="Classes, where the recipe's do not fit.")]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME:SHAPE[:DTYPE[:LOW..HIGH]]",
        help="One of several inputs of your own network, such as ids:16:int64:0..999; repeatable.",
    ),
]
InputNames = Annotated[str | None, typer.Option(metavar="NAME,...", help="What the engine calls its inputs.")]
OutputNames = Annotated[str | None, typer.Option(metavar="NAME,...", help="What the engine calls its outputs.")]
InputShape = Annotated[
    str | None, typer.Option(metavar="C,H,W", help="Input of your own network, where it cannot be known.")
]
Gpu = Annotated[str | None, typer.Option("--gpu", metavar="SM,...", help="GPUs to build for: sm86,sm89, or current.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Where artifacts lie.")]
Seed = Annotated[int, typer.Option(help="Seed of random weights and inputs.")]
DisableRule = Annotated[list[str] | None, typer.Option(metavar="NAME", help="Leave a rewrite rule out; repeatable.")]
EnableRule = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Run a rewrite rule that is off by default; repeatable.")
]
Io = Annotated[str, typer.Option("--io", help="Dtype of inputs and outputs: fp32, fp16 or bf16.")]
Level = Annotated[int | None, typer.Option(metavar="0..5", help="TensorRT's builder optimisation level.")]
Plugin = Annotated[
    str, typer.Option("--plugin", help="TensorRT plugins: on, off, or auto, which keeps the faster engine.")
]
TimedSizes = Annotated[str | None, typer.Option("--batch", metavar="N,...", help="Batch sizes to time.")]
Threads = Annotated[
    int | None, typer.Option(metavar="N", help="Threads of a CPU engine; default: all cores, regress: but one.")
]
Calibration = Annotated[
    str | None,
    typer.Option(metavar="DATA", help="INT8: a folder of images, an .npz file, digits, or random (noise)."),
]
Data = Annotated[
    str | None,
    typer.Option(metavar="DATA", help="To verify on: a folder of images, an .npz file or digits; default: noise."),
]
Calibrator = Annotated[str, typer.Option(help="INT8: auto, max, percentile, entropy or mse.")]
MaxDrop = Annotated[float | None, typer.Option(metavar="POINTS", help="INT8: what top-1 may lose on labelled data.")]
MinSqnr = Annotated[float | None, typer.Option(metavar="DB", help="INT8: least signal to noise of the output.")]
Mean = Annotated[str | None, typer.Option(metavar="M,...", help="Images: mean of each channel, of pixels in [0, 1].")]
Std = Annotated[str | None, typer.Option(metavar="S,...", help="Images: standard deviation of each channel.")]
Crop = Annotated[
    float | None, typer.Option(metavar="SHARE", help="Images: share of the shorter edge that the centre crop keeps.")
]
Resize = Annotated[
    str | None, typer.Option(metavar="METHOD", help="Images: nearest, bilinear, bicubic, lanczos, box or hamming.")
]
Limit = Annotated[int | None, typer.Option(metavar="N", help="Rows of data that are used, spread evenly; 256.")]
Trust = Annotated[bool, typer.Option("--trust", help="Run code in an engine that somebody else built.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout, and nothing else there.")]


DATA = (*IMAGES, "limit")
"""Options about rows of data, which may be others than those at the build."""
CALLED = {"inputs": "input", "gpus": "gpu", "disabled_rules": "disable_rule", "enabled_rules": "enable_rule"}
"""Fields of a selection that commands call otherwise."""


def selected(options: dict[str, Any]) -> Selection:
    """The selection from a command's own arguments."""
    given = {field.name: CALLED.get(field.name, field.name) for field in fields(Selection)}
    values = {field: options[option] for field, option in given.items() if option in options}
    shape, gpus = options["input_shape"], options.get("gpu")
    values["input_shape"] = None if shape is None else parse_shape(shape)
    for name in ("mean", "std"):
        asked = values.get(name)
        values[name] = None if asked is None else parse_channels(f"--{name}", asked)
    values["gpus"] = () if gpus is None else tuple(part.strip() for part in gpus.split(","))
    values["inputs"] = tuple(values.get("inputs") or ())
    for name in ("input_names", "output_names"):
        asked = values.get(name)
        values[name] = () if asked is None else tuple(part.strip() for part in asked.split(","))
    for rules in ("disabled_rules", "enabled_rules"):
        values[rules] = tuple(sorted(values[rules] or ()))
    return Selection(**values)


def opened(options: dict[str, Any], trusted: bool) -> tuple[Selection, Artifact | None]:
    """The selection from a command's own arguments; of an artifact's folder, the one it was built from, and itself.

    Raises InputError where an option says something else than the artifact does, or where the artifact does not hold
    its network, and ArtifactError where the network's name is somebody else's.
    """
    if not is_path(options["name"]):
        return selected(options), None
    artifact = store.open_artifact(Path(options["name"]))
    built = Selection.from_json(artifact.manifest["selection"])
    if kind(built.name) == "given":
        raise InputError(f"{artifact.folder} does not hold the network that it was compiled from: use mlpdeploy.load")
    if kind(built.name) == "user":
        trust.require_named(artifact, built.name, trusted)
    asked, usual = selected(options | {"name": built.name}), Selection(built.name)
    free = {"out", *DATA}
    for name in (field.name for field in fields(Selection) if field.name not in free):
        if getattr(asked, name) not in (getattr(usual, name), getattr(built, name)):
            raise InputError(f"{artifact.folder} was built with {name} {getattr(built, name)}: leave that option out")
    said = {name: getattr(asked, name) for name in DATA if getattr(asked, name) is not None}
    return replace(built, out=asked.out, **said), artifact


def write(path: Path | None, content: Any, append: bool = False) -> None:
    """A file that was asked for: text, or JSON values. Raises InputError where it cannot be written."""
    if path is not None:
        text = content if isinstance(content, str) else json.dumps(content, indent=2, allow_nan=False) + "\n"
        results.write(path, text, append)


def keep(path: Path | None, content: Any, append: bool = False) -> None:
    """As `write`, of what was measured: where it cannot be written, that is one line, and the run goes on."""
    try:
        write(path, content, append)
    except InputError as error:
        warn(str(error))


@contextmanager
def printing() -> Iterator[None]:
    """Print a result: where stdout takes no more, that is one line, and the exit code tells the rest."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError):  # what it still holds is not to fail once more when the process ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        warn(f"stdout cannot be written ({error.strerror or error})")


def warn(line: str) -> None:
    """One line on stderr."""
    Terminal(stderr=True, soft_wrap=True).print(f"warning: {line}", style="yellow", markup=False, highlight=False)


def print_json(document: Any) -> None:
    """One document, and nothing else, on stdout."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
