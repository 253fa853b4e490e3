"""Which network: recipes, timm models and the user's own factories, under one kind of name.

    vip_s7                    a recipe of `recipes/*.toml`, or one of its aliases
    timm:mixer_b32_224        any model that timm can build
    hf-hub:owner/model        a model for timm on the Hugging Face Hub; owner/model@revision too
    package.module:factory    an `nn.Module`, or a class or function that makes one, found from the current folder
    python:Net                a network that was in hand when `mlpdeploy.compile` was called; no name finds it again

`find` describes a network without building it (`source.reference` does), and imports neither torch nor timm before it
needs them, so that names can be listed and checked at once.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlpdeploy.errors import InputError
from mlpdeploy.shipped import shipped

if TYPE_CHECKING:
    pass

Kind = Literal["recipe", "timm", "user", "given"]

GIVEN = "python:"
"""What the names of networks that were in hand begin with."""

HUB = "hf-hub:"
"""What the names of models on the Hugging Face Hub begin with, as timm's do."""

REPOSITORY = r"\w[\w.-]*/\w[\w.-]*"
"""What a repository on the Hub is called, as a regular expression."""

OTHERS = "timm:<model>, hf-hub:owner/model or package.module:factory"
"""What names networks that have no recipe."""

UNIT = "unit"
"""What stands for the layout of pixels that are numbers in [0, 1]."""

LEVELS = 256
"""Values of a byte."""

IMAGE = "input"
"""Name of the one input of a network that takes images."""


@dataclass(frozen=True)
class Budget:
    """What an engine of one precision may lose: relative error of the logits, and agreement of the top-1 class."""

    max_relative_error: float
    min_top1_agreement: float


@dataclass(frozen=True)
class Input:
    """One input of a network: its name, its shape without the batch axis, its dtype as torch names it.

    Random ones are drawn uniformly from [low, high), or from a standard normal distribution where none is given.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32", "int64", "uint8"] = "float32"
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Recipe:
    """Everything about a network that is known before it is built.

    `input_shape` is (channels, height, width) and empty where only the built network knows it (see `complete`), or
    where `inputs` says more: a network of one image leaves `inputs` empty. `checkpoint` names a function that reads
    the authors' state dict (see `checkpoint.translate`); without it their keys are the network's own. `alike` names the
    recipes whose checkpoints have the same keys and shapes, so that nothing in one tells which it is of. `gmacs` counts
    matrix products and convolutions at batch 1, in 1e9 multiply-accumulates. `rules` gives for each rewrite rule how
    often it fires. `launches` are those of TensorRT-RTX for one inference in FP16, of the plain export and of ours: all
    of them (total), and those that only copy (copies) or transpose (transposes), of which `moves` has ours by
    module. A network that does not classify has `num_classes` None (0 in the file). Facts that nobody published or
    counted are None. Of a network of one's own nobody knows how its images are `prepared`, unless it says so: mean,
    std, crop and interpolation then mean nothing. `crop_mode` is timm's: center, squash or border. Where the
    network normalises by itself (see `network.preparing`), `pixels` says that it takes numbers in [0, 1] (UNIT), or
    bytes: their layout, and their size where it resizes them.
    """

    name: str
    family: str
    factory: str
    input_shape: tuple[int, ...]
    num_classes: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float
    interpolation: str
    precisions: tuple[str, ...]
    budgets: Mapping[str, Budget]
    source: str = ""
    parameters: int | None = None
    gmacs: float | None = None
    top1: float | None = None
    top1_source: str | None = None
    aliases: tuple[str, ...] = ()
    gelu: Literal["erf", "tanh"] | None = None
    checkpoint: str | None = None
    alike: tuple[str, ...] = ()
    inputs: tuple[Input, ...] = ()
    rules: Mapping[str, int] = field(default_factory=dict)
    launches: Mapping[str, list[int]] = field(default_factory=dict)
    moves: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    prepared: bool = True
    crop_mode: str = "center"
    pixels: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The name and the aliases."""
        return (self.name, *self.aliases)

    def budget(self, precision: str, *others: str | None) -> Budget:
        """That of a precision, or of the coarsest of `others` where one is coarser: of what a network computes in by
        itself, and of what carries its inputs and outputs.
        """
        asked = [self.budgets[name] for name in (precision, *others) if name is not None]
        return max(asked, key=lambda budget: budget.max_relative_error)


def done_within(pixels: str) -> set[str]:
    """What of the preparation of images a network that takes such `pixels` does by itself, as recipes call it."""
    return ({"mean", "std"} if pixels else set()) | ({"crop", "crop_mode"} if ":" in pixels else set())


def folder() -> Path:
    """Where the recipes lie: inside the package where it was installed, beside it in a checkout."""
    return shipped("recipes")


@cache
def _defaults() -> dict[str, Any]:
    return tomllib.loads((folder() / "defaults.toml").read_text(encoding="utf-8"))


def made(name: str, *layers: Mapping[str, Any]) -> Recipe:
    """A recipe from tables, later ones first; budgets are merged precision by precision."""
    facts: dict[str, Any] = {"name": name, "input_shape": ()}
    budgets: dict[str, Budget] = {}
    for layer in (_defaults(), *layers):
        facts |= {key: tuple(value) if isinstance(value, list) else value for key, value in layer.items()}
        budgets |= {precision: Budget(**budget) for precision, budget in layer.get("budgets", {}).items()}
    inputs = tuple(Input(**(given | {"shape": tuple(given["shape"])})) for given in facts.get("inputs", ()))
    classes = facts["num_classes"] or None
    return Recipe(**(facts | {"budgets": budgets, "inputs": inputs, "num_classes": classes}))


@cache
def recipes() -> Mapping[str, Recipe]:
    """Every recipe by name, in the order of the families' files."""
    found: dict[str, Recipe] = {}
    for path in sorted(folder().glob("*.toml")):
        if path.name == "defaults.toml":
            continue
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        for name, facts in table.pop("networks").items():
            found[name] = made(name, table, facts)
    return found


def kind(name: str) -> Kind:
    """How a name is looked up."""
    if name.startswith(("timm:", HUB)):
        return "timm"
    if name.startswith(GIVEN):
        return "given"
    return "user" if ":" in name else "recipe"


def changes(name: str) -> bool:
    """Whether only the built network tells what a name means: the user's code, or what lies on the Hub by now."""
    return kind(name) in ("user", "given") or name.startswith(HUB)


def canonical(name: str) -> str:
    """The name without aliases. Raises InputError, with the nearest names, where a recipe's name is unknown."""
    if (hub := re.match(r"(timm:)?hf[-_]hub:", name)) is not None:
        repository = name[hub.end() :]
        if not re.fullmatch(REPOSITORY + r"(@[\w./-]+)?", repository):
            raise InputError(f"{name!r} is no model of the Hugging Face Hub: write {HUB}owner/model, perhaps @revision")
        return HUB + repository
    if kind(name) != "recipe":
        prefix, _, rest = name.partition(":")
        if not prefix or not rest:
            raise InputError(f"{name!r} is not a network: write {OTHERS}")
        return name
    aliases = {alias: recipe.name for recipe in recipes().values() for alias in recipe.aliases}
    if name in recipes() or name in aliases:
        return aliases.get(name, name)
    near = difflib.get_close_matches(name, [*recipes(), *aliases], n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "see `mlpdeploy list`."
    raise InputError(f"there is no network {name!r}: {hint} Other names are {OTHERS}")


def given(name: str, inputs: tuple[Input, ...]) -> Recipe:
    """The recipe of a network in hand, called `name` (which starts with GIVEN), that takes `inputs`."""
    facts = {"family": "user", "factory": name, "num_classes": 0, "inputs": [vars(one) for one in inputs]}
    return made(name, facts | {"prepared": False})
