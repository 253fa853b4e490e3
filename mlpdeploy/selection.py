"""What the user asks for, checked: one frozen value that names an artifact and everything that goes into it."""

from __future__ import annotations

import difflib
import math
import pkgutil
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mlpdeploy.engine.backend import Batch, BuildRequest
from mlpdeploy.errors import InputError
from mlpdeploy.graph import rules
from mlpdeploy.recipe import Input, canonical, kind

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")
IO = ("fp32", "fp16", "bf16")
PLUGIN = ("auto", "on", "off")
BATCH = "1:8:32"
OUT = Path("artifacts")
RESIZES = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
IMAGES = ("mean", "std", "crop", "resize")
"""Options that say how images are prepared."""
CALIBRATORS = ("auto", "max", "percentile", "entropy", "mse")
NEEDS_CALIBRATION = (
    "INT8 needs --calibration: a folder of images, an .npz file, digits (scikit-learn's) or random (noise)"
)
LONGEST_NAME = 200
"""Bytes of a name that a folder, and the files beside it that begin with it, can have on every file system."""
LAYOUT = "propagate_layout"
"""The layout pass, which can be disabled by name like a rule."""


@dataclass(frozen=True)
class Selection:
    """A network, its weights, and the engine to build from it.

    `inputs` say what a network of one's own takes, where that is not one image of `input_shape` (see `parse_input`);
    `input_names` and `output_names` are what the engine calls them, in the order of the network.
    `ema` says whether averaged weights of the checkpoint are taken (None: where there are some).
    `batch` is MIN:OPT:MAX or one number for all three. `gpus` are compute capabilities such as sm86, or `current` for
    this machine's (none: what the backend builds for by itself). `io` is the dtype of inputs and outputs. `level` is
    TensorRT's builder optimisation level, 0 to 5. `plugin` says whether a TensorRT engine carries our plugins; `auto`
    keeps the faster way.
    INT8 is calibrated on `calibration` (a folder of images, an .npz file, digits or random) with `calibrator`; with
    `max_drop` (points of top-1 on labelled data) or `min_sqnr` (decibels) it leaves out what costs too much accuracy.
    Images are resized by `resize`, so that the centre that is cut out is `crop` of the shorter edge, and normalised by
    `mean` and `std`, one a channel; what is None is as the recipe says. `limit` rows of data are used.
    Raises InputError, on creation, where a value cannot be used.
    """

    name: str
    precision: str = "fp16"
    backend: str = "auto"
    batch: str = BATCH
    checkpoint: Path | None = None
    image_size: int | None = None
    num_classes: int | None = None
    input_shape: tuple[int, ...] | None = None
    inputs: tuple[str, ...] = ()
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    out: Path = OUT
    seed: int = 0
    disabled_rules: tuple[str, ...] = ()
    enabled_rules: tuple[str, ...] = ()
    pretrained: bool = False
    ema: bool | None = None
    io: str = "fp32"
    level: int | None = None
    plugin: str = "auto"
    calibration: str | None = None
    calibrator: str = "auto"
    max_drop: float | None = None
    min_sqnr: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop: float | None = None
    resize: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", canonical(self.name))
        if len(self.folder_name.encode()) > LONGEST_NAME:
            raise InputError(f"a name of {len(self.name)} characters: no folder can be called so")
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("io", self.io, IO)
        _one_of("plugin", self.plugin, PLUGIN)
        _one_of("calibrator", self.calibrator, CALIBRATORS)
        _check_calibration(self)
        _check_images(self)
        _at_least("image size", self.image_size, 1)
        _at_least("number of classes", self.num_classes, 1)
        _check_seed(self.seed)
        parse_batch(self.batch)
        if self.level is not None and not 0 <= self.level <= 5:
            raise InputError(f"builder level {self.level}: TensorRT's levels are 0 to 5")
        if self.input_shape is not None and (len(self.input_shape) < 1 or min(self.input_shape) < 1):
            raise InputError(f"input shape {self.input_shape}: give positive sizes, such as 3,224,224")
        if self.input_shape is not None and self.image_size is not None:
            raise InputError("--input-shape and --image-size exclude each other: give one of the two")
        if self.input_shape is not None and kind(self.name) == "recipe":
            raise InputError(f"{self.name} fixes its input's shape: --image-size N changes its height and width")
        _check_ports(self)
        if self.ema is not None and self.checkpoint is None:
            raise InputError("--ema and --no-ema choose among the weights of a checkpoint: pass --checkpoint")
        if self.pretrained and self.checkpoint is not None:
            raise InputError("--checkpoint and --pretrained exclude each other: give one of the two")
        for rule in (*self.disabled_rules, *self.enabled_rules):
            _known_rule(rule)
        for gpu in self.gpus:
            if not re.fullmatch(r"sm[0-9]{2,3}|current", gpu):
                raise InputError(f"GPU {gpu!r}: give compute capabilities such as sm86,sm89, or current")

    @property
    def profile(self) -> Batch:
        """The batch sizes as numbers."""
        return parse_batch(self.batch)

    @property
    def request(self) -> BuildRequest:
        """What a backend is asked to build."""
        return BuildRequest(self.precision, self.profile, self.gpus, self.level, plugin=self.plugin)

    @property
    def folder_name(self) -> str:
        """The network's name as the name of a folder."""
        return re.sub(r"[^\w.-]+", "-", self.name)

    def with_backend(self, backend: str) -> Selection:
        """The same selection with `auto` decided."""
        return replace(self, backend=backend)

    def to_json(self) -> dict[str, Any]:
        """What decides the content of an artifact, as JSON values: all but the folder it lies in."""
        values = asdict(self)
        del values["out"]
        values["batch"] = "{min}:{opt}:{max}".format(**asdict(self.profile))
        values["checkpoint"] = None if self.checkpoint is None else str(self.checkpoint)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Selection:
        """What `to_json` wrote. Raises InputError where another version wrote it."""
        try:
            given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            given["checkpoint"] = None if given["checkpoint"] is None else Path(given["checkpoint"])
            return cls(**given)
        except (KeyError, TypeError) as error:
            raise InputError(
                f"a selection of another version of mlpdeploy ({error}): build the artifact again"
            ) from error

    def weights(self) -> str:
        """Where the weights come from, in words that every output repeats."""
        if self.checkpoint is not None:
            return f"weights from {self.checkpoint}"
        if self.pretrained:
            return "timm's pretrained weights"
        if kind(self.name) == "given":
            return "weights of the network that was given in Python"
        if kind(self.name) == "user":
            return f"weights as {self.name} made them (seed {self.seed}); no checkpoint was given"
        return f"random weights from seed {self.seed}; no checkpoint was given"


def parse_batch(text: str) -> Batch:
    """MIN:OPT:MAX, or one number for all three. Raises InputError where these are not 1 <= MIN <= OPT <= MAX."""
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(re.fullmatch(r"[0-9]{1,6}", part) for part in parts):
        raise InputError(f"batch {text!r}: give MIN:OPT:MAX such as 1:8:32, or one number")
    low, opt, high = (int(part) for part in (parts * 3 if len(parts) == 1 else parts))
    if low < 1:
        raise InputError(f"batch {text!r}: the smallest batch is 1")
    if not low <= opt <= high:
        raise InputError(f"batch {text!r}: it must be MIN <= OPT <= MAX")
    return Batch(low, opt, high)


def parse_sizes(text: str | None) -> tuple[int, ...]:
    """1,8,64 as numbers, none of None. Raises InputError where they are not whole numbers from 1."""
    parts = [] if text is None else text.split(",")
    if not all(re.fullmatch(r"\s*[1-9][0-9]{0,5}\s*", part) for part in parts):
        raise InputError(f"batch {text!r}: give the sizes to time, such as 1,8,64")
    return tuple(int(part) for part in parts)


def parse_shape(text: str) -> tuple[int, ...]:
    """C,H,W as numbers. Raises InputError where they are not positive whole numbers."""
    parts = re.split(r"[,x]", text.strip())
    if not all(re.fullmatch(r"[1-9][0-9]{0,6}", part) for part in parts):
        raise InputError(f"input shape {text!r}: give positive sizes without the batch, such as 3,224,224")
    return tuple(int(part) for part in parts)


def parse_input(text: str) -> Input:
    """NAME:SHAPE[:float32[:LOW..HIGH]] or NAME:SHAPE:int64:LOW..HIGH, a shape without the batch (none: a number a row).

    Raises InputError where it is neither.
    """
    found = re.fullmatch(r"(\w+):([0-9,x]*)(?::(float32|int64))?(?::(-?[0-9]{1,18})\.\.(-?[0-9]{1,18}))?", text.strip())
    if found is None:
        raise InputError(
            f"input {text!r}: give NAME:SHAPE[:DTYPE[:LOW..HIGH]], such as x:3,224,224 or ids:16:int64:0..999"
        )
    name, shape, dtype, low, high = found.groups()
    if dtype == "int64" and low is None:
        raise InputError(f"input {text!r}: say which whole numbers it may hold, such as {name}:{shape}:int64:0..999")
    # Of whole numbers the highest is one that there may be; an Input says the first that there may not.
    bounds = () if low is None else (int(low), int(high) + (dtype == "int64"))
    if bounds and bounds[0] >= bounds[1]:
        raise InputError(f"input {text!r}: {low}..{high} holds nothing")
    return Input(name, parse_shape(shape) if shape else (), "int64" if dtype == "int64" else "float32", *bounds)


def parse_channels(option: str, text: str) -> tuple[float, ...]:
    """0.5,0.5,0.5 as numbers. Raises InputError where they are none."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{option} {text!r}: give one number a channel, such as 0.485,0.456,0.406") from error


def _check_ports(selection: Selection) -> None:
    """What an engine takes and gives can be told apart."""
    if selection.inputs:
        parsed = [parse_input(text).name for text in selection.inputs]
        _distinct("--input", parsed)
        if selection.input_shape is not None or selection.image_size is not None:
            raise InputError("--input says all of what the network takes: drop --input-shape and --image-size")
        if kind(selection.name) == "recipe":
            raise InputError(f"{selection.name} fixes its inputs: --input-names renames them")
    for option, names in (("--input-names", selection.input_names), ("--output-names", selection.output_names)):
        _distinct(option, names)
    if both := set(selection.input_names) & set(selection.output_names):
        raise InputError(f"an input and an output are called {min(both)!r}: give each a name of its own")


def _distinct(option: str, names: Sequence[str]) -> None:
    for name in names:
        if not re.fullmatch(r"[\w.-]{1,100}", name):
            raise InputError(f"{option} {name!r}: give letters, digits, and . _ -")
        if list(names).count(name) > 1:
            raise InputError(f"{option}: {name!r} stands there twice")


def _check_calibration(selection: Selection) -> None:
    """Options of INT8 make sense with INT8 only."""
    options = {
        "calibration": selection.calibration,
        "max-drop": selection.max_drop,
        "min-sqnr": selection.min_sqnr,
        "calibrator": None if selection.calibrator == "auto" else selection.calibrator,
    }
    given = [name for name, value in options.items() if value is not None]
    if given and selection.precision != "int8":
        raise InputError(f"--{given[0]} is for --precision int8, not for {selection.precision}")
    if selection.max_drop is not None and selection.min_sqnr is not None:
        raise InputError("--max-drop and --min-sqnr exclude each other: give one of the two")
    if selection.max_drop is not None and not 0 <= selection.max_drop <= 100:
        raise InputError(f"max drop {selection.max_drop}: give points of top-1 from 0 to 100, such as 0.5")
    if selection.min_sqnr is not None and not 0 <= selection.min_sqnr <= 200:
        raise InputError(f"min SQNR {selection.min_sqnr}: give decibels from 0 to 200, such as 30")


def _check_images(selection: Selection) -> None:
    """What is said of images can be done to some."""
    mean, std, crop = selection.mean, selection.std, selection.crop
    if (mean is None) != (std is None):
        raise InputError("--mean and --std belong together: give both, one number a channel each")
    if mean is not None and std is not None:
        if len(mean) != len(std) or len(mean) not in (1, 3):
            raise InputError(f"{len(mean)} means and {len(std)} stds: images have 1 or 3 channels, one of each")
        if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
            raise InputError(f"mean {mean}, std {std}: give numbers for pixels in [0, 1], stds above 0")
    if crop is not None and not 0 < crop <= 1:
        raise InputError(f"crop {crop}: give the share of the shorter edge that is kept, above 0 and up to 1")
    if selection.resize is not None:
        _one_of("resize", selection.resize, RESIZES)
    _at_least("limit", selection.limit, 1)


def _check_seed(seed: int) -> None:
    """Every generator takes 63 bits."""
    if not 0 <= seed < 2**63:
        raise InputError(f"seed {str(seed)[:32]}: give a whole number from 0 to {2**63 - 1}")


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{what} {value!r} is not known: choose one of {', '.join(known)}")


def _known_rule(name: str) -> None:
    """A rule is a file of `graph/rules/`; to know its name it need not be imported, which would take torch."""
    known = [*(module.name for module in pkgutil.iter_modules(rules.__path__)), LAYOUT]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"the rules are {', '.join(known)}"
        raise InputError(f"no rule is named {name!r}: {hint}")


def _at_least(what: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise InputError(f"{what} {value}: it must be at least {least}")
