"""What the commands share: their options, and the selection that these make."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mlpdeploy.errors import InputError
from mlpdeploy.selection import Selection, parse_shape

Name = Annotated[str, typer.Argument(help="A recipe (see list), timm:<model>, or package.module:factory.")]
Precision = Annotated[str, typer.Option(help="fp32, tf32, fp16, bf16 or int8.")]
BackendName = Annotated[
    str,
    typer.Option("--backend", help="auto, tensorrt, tensorrt-rtx, torch-tensorrt, openvino, onnxruntime or inductor."),
]
BatchSizes = Annotated[str, typer.Option("--batch", metavar="MIN:OPT:MAX", help="Batch sizes, or one number.")]
Checkpoint = Annotated[Path | None, typer.Option(metavar="FILE", help="Weights: safetensors, torch's format or .npz.")]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Fetch timm's pretrained weights.")]
ImageSize = Annotated[int | None, typer.Option(metavar="N", help="Height and width of the images.")]
NumClasses = Annotated[int | None, typer.Option(metavar="N", help="Classes, where the recipe's do not fit.")]
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
Threads = Annotated[int | None, typer.Option(metavar="N", help="Threads of a CPU engine; all cores by default.")]
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
Trust = Annotated[bool, typer.Option("--trust", help="Run an engine that can hold code though somebody else built it.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout, and nothing else there.")]


def selected(options: dict[str, Any]) -> Selection:
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
    "io", "level", "plugin", "calibration", "calibrator", "max_drop", "min_sqnr",
)  # fmt: skip
"""Arguments of commands that a selection takes as they are; not every command has all."""


def write(path: Path | None, content: Any, append: bool = False) -> None:
    """A file that was asked for: text, or JSON values."""
    if path is None:
        return
    text = content if isinstance(content, str) else json.dumps(content, indent=2, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if append else "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def print_json(document: Any) -> None:
    """One document, and nothing else, on stdout."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
