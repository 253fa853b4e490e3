"""What can be chosen, in parts that check themselves: the network, the engine, and how 8 bits are calibrated.

What surrounds the network in its engine is in `service`.

Every field says how it is asked for on the command line, whose options are made from it (see `options`).
"""

from __future__ import annotations

import math
import re
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from mlpdeploy.engine import form
from mlpdeploy.engine.backend import BuildRequest, backends
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.build_route import joined
from mlpdeploy.engine.features import FEATURES
from mlpdeploy.errors import InputError
from mlpdeploy.precisions import PRECISIONS, QUANTISED
from mlpdeploy.selection.checks import at_least, distinct, known_rule, one_of
from mlpdeploy.selection.option import option
from mlpdeploy.selection.parse import parse_batch, parse_input, parse_mean, parse_shape, parse_std, parse_words
from mlpdeploy.zoo.recipe import HUB, canonical, kind

IO = ("fp32", "fp16", "bf16")
PLUGIN = ("auto", "on", "off")
BATCH = "1:8:32"
RESIZES = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
IMAGES = ("mean", "std", "crop", "resize")
"""Fields that say how images are prepared."""
NEEDS_CALIBRATION = "needs --calibration: a folder of images, an .npz file, digits (scikit-learn's) or random (noise)"
CALIBRATORS = ("auto", "max", "percentile", "entropy", "mse")
LONGEST_NAME = 200
"""Bytes of a name that a folder, and the files beside it that begin with it, can have on every file system."""


@dataclass(frozen=True)
class NetworkChoice:
    """Which network, with which weights, what it takes, and how its images are prepared.

    `inputs` say what a network of one's own takes, where that is not one image of `input_shape` (see `parse_input`);
    `input_names` and `output_names` are what the engine calls them, in the order of the network.
    `ema` says whether averaged weights of the checkpoint are taken (None: where there are some).
    Images are resized by `resize`, so that the centre that is cut out is `crop` of the shorter edge, and normalised by
    `mean` and `std`, one a channel; what is None is as the recipe says.
    Raises InputError, on creation, where a value cannot be used.
    """

    name: str
    _: KW_ONLY
    checkpoint: Path | None = option(None, "Weights: safetensors, torch's format or .npz.", metavar="FILE")
    pretrained: bool = option(False, "Fetch timm's pretrained weights.", flag="--pretrained")
    ema: bool | None = option(
        None, "Whether averaged weights of the checkpoint are taken; default: if any.", flag="--ema/--no-ema"
    )
    image_size: int | None = option(None, "Height and width of the images.", metavar="N")
    num_classes: int | None = option(None, "Classes, where the recipe's do not fit.", metavar="N")
    input_shape: tuple[int, ...] | None = option(
        None, "Input of your own network, where it cannot be known.", metavar="C,H,W", parse=parse_shape
    )
    inputs: tuple[str, ...] = option(
        (),
        "One of several inputs of your own network, such as ids:16:int64:0..999; repeatable.",
        metavar="NAME:SHAPE[:DTYPE[:LOW..HIGH]]",
        flag="--input",
        repeated=True,
    )
    input_names: tuple[str, ...] = option(
        (), "What the engine calls its inputs.", metavar="NAME,...", parse=parse_words
    )
    output_names: tuple[str, ...] = option(
        (), "What the engine calls its outputs.", metavar="NAME,...", parse=parse_words
    )
    seed: int = option(0, "Seed of random weights and inputs.")
    mean: tuple[float, ...] | None = option(
        None, "Images: mean of each channel, of pixels in [0, 1].", metavar="M,...", parse=parse_mean
    )
    std: tuple[float, ...] | None = option(
        None, "Images: standard deviation of each channel.", metavar="S,...", parse=parse_std
    )
    crop: float | None = option(None, "Images: share of the shorter edge that the centre crop keeps.", metavar="SHARE")
    resize: str | None = option(None, "Images: nearest, bilinear, bicubic, lanczos, box or hamming.", metavar="METHOD")

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", canonical(self.name))
        if len(self.folder_name.encode()) > LONGEST_NAME:
            raise InputError(f"a name of {len(self.name)} characters: no folder can be called so")
        at_least("image size", self.image_size, 1)
        at_least("number of classes", self.num_classes, 1)
        if not 0 <= self.seed < 2**63:  # every generator takes 63 bits
            raise InputError(f"seed {str(self.seed)[:32]}: give a whole number from 0 to {2**63 - 1}")
        _check_ports(self)
        _check_images(self)
        if self.ema is not None and self.checkpoint is None:
            raise InputError("--ema and --no-ema choose among the weights of a checkpoint: pass --checkpoint")
        if self.pretrained and self.checkpoint is not None:
            raise InputError("--checkpoint and --pretrained exclude each other: give one of the two")

    @property
    def folder_name(self) -> str:
        """The network's name as the name of a folder."""
        return re.sub(r"[^\w.-]+", "-", self.name)

    def weights(self) -> str:
        """Where the weights come from, in words that every output repeats."""
        if self.checkpoint is not None:
            return f"weights from {self.checkpoint}"
        if self.pretrained:
            return f"the weights of {self.name}" if self.name.startswith(HUB) else "timm's pretrained weights"
        if kind(self.name) == "given":
            return "weights of the network that was given in Python"
        if kind(self.name) == "user":
            return f"weights as {self.name} made them (seed {self.seed}); no checkpoint was given"
        return f"random weights from seed {self.seed}; no checkpoint was given"


@dataclass(frozen=True)
class EngineChoice:
    """Which engine: precision, backend, batch sizes, and what of the compiler is on.

    `batch` is MIN:OPT:MAX or one number for all three, or several with commas, which are optimisation profiles of one
    TensorRT engine. `gpus` are compute capabilities such as sm86, or `current` for this machine's (none: what the
    backend builds for by itself). `io` is the dtype of inputs and outputs. `level` is TensorRT's builder optimisation
    level, 0 to 5; `features` are what else its engines are (see `FEATURES`); `timing_cache` is where it keeps times of
    kernels, which decides no content; `route` are settings of its compiler (see `build_route`). `plugin` says whether
    a TensorRT engine carries our plugins; `auto` keeps the faster way.
    Raises InputError, on creation, where a value cannot be used.
    """

    precision: str = option("fp16", f"{', '.join(PRECISIONS)}.")
    backend: str = option("auto", f"auto, {', '.join(backends())}.")
    batch: str = option(
        BATCH, "Batch sizes, or one number; several optimisation profiles with commas.", metavar="MIN:OPT:MAX"
    )
    _: KW_ONLY
    gpus: tuple[str, ...] = option(
        (), "GPUs to build for: sm86,sm89, or current.", metavar="SM,...", flag="--gpu", parse=parse_words
    )
    disabled_rules: tuple[str, ...] = option(
        (),
        "Leave a rule or a form out (see list --rules); repeatable.",
        metavar="NAME",
        flag="--disable-rule",
        repeated=True,
    )
    enabled_rules: tuple[str, ...] = option(
        (),
        "Run a rewrite rule that is off by default; repeatable.",
        metavar="NAME",
        flag="--enable-rule",
        repeated=True,
    )
    io: str = option("fp32", "Dtype of inputs and outputs: fp32, fp16 or bf16.")
    level: int | None = option(None, "TensorRT's builder optimisation level.", metavar="0..5")
    features: tuple[str, ...] = option(
        (), f"What else a TensorRT engine is: {', '.join(FEATURES)}.", metavar="NAME,...", parse=parse_words
    )
    timing_cache: Path | None = option(
        None, "TensorRT's timing cache; default: one of your own for each GPU.", metavar="FILE"
    )
    plugin: str = option("auto", "TensorRT plugins: on, off, or auto, which keeps the faster engine.")
    route: str = option("", "TensorRT's build route: settings of its compiler.", metavar="WORDS", flag="--build-route")

    def __post_init__(self) -> None:
        for names in ("disabled_rules", "enabled_rules", "features"):
            object.__setattr__(self, names, tuple(sorted(getattr(self, names))))
        one_of("precision", self.precision, PRECISIONS)
        one_of("io", self.io, IO)
        one_of("plugin", self.plugin, PLUGIN)
        object.__setattr__(self, "route", joined(self.route))
        for feature in self.features:
            one_of("feature", feature, tuple(FEATURES))
        distinct("--features", self.features)
        parse_batch(self.batch)
        if self.level is not None and not 0 <= self.level <= 5:
            raise InputError(f"builder level {self.level}: TensorRT's levels are 0 to 5")
        for rule in self.disabled_rules:
            known_rule(rule, form.names())
        for rule in self.enabled_rules:
            known_rule(rule)
        if both := {*self.disabled_rules} & {*self.enabled_rules}:
            raise InputError(f"{min(both)} stands in --disable-rule and in --enable-rule: choose one of them")
        for gpu in self.gpus:
            if not re.fullmatch(r"sm[0-9]{2,3}|current", gpu):
                raise InputError(f"GPU {gpu!r}: give compute capabilities such as sm86,sm89, or current")
        distinct("--gpu", self.gpus)

    @property
    def quantised(self) -> bool:
        """Whether products read 8-bit codes, whose ranges a calibration finds."""
        return self.precision in QUANTISED

    @property
    def low_io(self) -> str | None:
        """What carries inputs and outputs, where that is less than FP32."""
        return None if self.io == "fp32" else self.io

    @property
    def profile(self) -> Batch:
        """The batch sizes as numbers."""
        return parse_batch(self.batch)

    def request(self, precision: str | None = None, batch: Batch | None = None) -> BuildRequest:
        """What a backend is asked to build: in another precision, or for other batch sizes, where these are given."""
        precision, batch = precision or self.precision, batch or self.profile
        left_out = tuple(name for name in self.disabled_rules if name in form.names())
        return BuildRequest(
            precision,
            batch,
            self.gpus,
            self.level,
            plugin=self.plugin,
            disabled=left_out,
            features=self.features,
            timing_cache=self.timing_cache,
            route=self.route,
        )

    @property
    def disabled_in_graph(self) -> tuple[str, ...]:
        """Of the rules that are left out, those of the graph: the others are forms of the file."""
        return tuple(name for name in self.disabled_rules if name not in form.names())


@dataclass(frozen=True)
class CalibrationChoice:
    """How 8 bits are calibrated: on `calibration` (a folder of images, an .npz, digits or random) with `calibrator`.

    With `max_drop` (points of top-1 on labelled data) or `min_sqnr` (decibels) what costs too much accuracy is left out
    of 8 bits. `limit` rows of data are used.
    Raises InputError, on creation, where a value cannot be used.
    """

    _: KW_ONLY
    calibration: str | None = option(
        None, "INT8, FP8, NVFP4: a folder of images, an .npz file, digits, or random (noise).", metavar="DATA"
    )
    calibrator: str = option("auto", "INT8, FP8: auto, max, percentile, entropy or mse; NVFP4: max.")
    max_drop: float | None = option(None, "INT8, FP8, NVFP4: what top-1 may lose on labelled data.", metavar="POINTS")
    min_sqnr: float | None = option(None, "INT8, FP8, NVFP4: least signal to noise of the output.", metavar="DB")
    limit: int | None = option(None, "Rows of data that are used, spread evenly; 256.", metavar="N")

    def __post_init__(self) -> None:
        one_of("calibrator", self.calibrator, CALIBRATORS)
        at_least("limit", self.limit, 1)
        if self.max_drop is not None and self.min_sqnr is not None:
            raise InputError("--max-drop and --min-sqnr exclude each other: give one of the two")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise InputError(f"max drop {self.max_drop}: give points of top-1 from 0 to 100, such as 0.5")
        if self.min_sqnr is not None and not 0 <= self.min_sqnr <= 200:
            raise InputError(f"min SQNR {self.min_sqnr}: give decibels from 0 to 200, such as 30")

    def said(self) -> list[str]:
        """The options that say something of calibration, without their dashes."""
        options = {
            "calibration": self.calibration,
            "max-drop": self.max_drop,
            "min-sqnr": self.min_sqnr,
            "calibrator": None if self.calibrator == "auto" else self.calibrator,
        }
        return [name for name, value in options.items() if value is not None]


def _check_ports(choice: NetworkChoice) -> None:
    """What an engine takes and gives is known once, and can be told apart."""
    if choice.input_shape is not None:
        if len(choice.input_shape) < 1 or min(choice.input_shape) < 1:
            raise InputError(f"input shape {choice.input_shape}: give positive sizes, such as 3,224,224")
        if choice.image_size is not None:
            raise InputError("--input-shape and --image-size exclude each other: give one of the two")
        if kind(choice.name) == "recipe":
            raise InputError(f"{choice.name} fixes its input's shape: --image-size N changes its height and width")
    if choice.inputs:
        distinct("--input", [parse_input(text).name for text in choice.inputs])
        if choice.input_shape is not None or choice.image_size is not None:
            raise InputError("--input says all of what the network takes: drop --input-shape and --image-size")
        if kind(choice.name) == "recipe":
            raise InputError(f"{choice.name} fixes its inputs: --input-names renames them")
    for flag, names in (("--input-names", choice.input_names), ("--output-names", choice.output_names)):
        distinct(flag, names)
    if both := set(choice.input_names) & set(choice.output_names):
        raise InputError(f"an input and an output are called {min(both)!r}: give each a name of its own")


def _check_images(choice: NetworkChoice) -> None:
    """What is said of images can be done to some."""
    mean, std, crop = choice.mean, choice.std, choice.crop
    if (mean is None) != (std is None):
        raise InputError("--mean and --std belong together: give both, one number a channel each")
    if mean is not None and std is not None:
        if len(mean) != len(std) or len(mean) not in (1, 3):
            raise InputError(f"{len(mean)} means and {len(std)} stds: images have 1 or 3 channels, one of each")
        if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
            raise InputError(f"mean {mean}, std {std}: give numbers for pixels in [0, 1], stds above 0")
    if crop is not None and not 0 < crop <= 1:
        raise InputError(f"crop {crop}: give the share of the shorter edge that is kept, above 0 and up to 1")
    if choice.resize is not None:
        one_of("resize", choice.resize, RESIZES)
