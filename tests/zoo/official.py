"""What the authors' checkpoints hold: the shape and dtype of every key, as their own constructors made them."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlpdeploy.zoo import recipe as recipes

FOLDER = Path(__file__).parent.parent / "data" / "checkpoints"
FORMS = ("_train", "_deploy", "_torch")
"""Forms of one network, for which there is one recipe."""


@dataclass(frozen=True)
class Official:
    """One published variant: where it is defined, its number of parameters, its keys with (shape, dtype)."""

    name: str
    source: str
    parameters: int
    keys: Mapping[str, tuple[tuple[int, ...], torch.dtype]]

    @property
    def recipe(self) -> str:
        """The name of its recipe."""
        return functools.reduce(str.removesuffix, FORMS, self.name)

    def shapes(self) -> dict[str, list[int]]:
        """Of every key."""
        return {key: list(shape) for key, (shape, _) in self.keys.items()}

    def random(self, seed: int = 2) -> dict[str, Tensor]:
        """A state dict of this form; variances positive, integers zero."""
        generator = torch.Generator().manual_seed(seed)
        return {key: _random(key, shape, dtype, generator) for key, (shape, dtype) in self.keys.items()}

    def empty(self) -> dict[str, Tensor]:
        """A state dict of this form without values, on the meta device."""
        return {key: torch.empty(shape, dtype=dtype, device="meta") for key, (shape, dtype) in self.keys.items()}


def _random(key: str, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if not (dtype.is_floating_point or dtype.is_complex):
        return torch.zeros(shape, dtype=dtype)
    drawn = torch.randn(shape, generator=generator, dtype=dtype)
    fan_in = max(1, math.prod(shape[1:])) if len(shape) > 1 else 4
    drawn = drawn / fan_in**0.5
    return drawn.abs() + 0.5 if "running_var" in key else drawn


def official(name: str) -> Official:
    """One of `names()`."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    keys = {
        key: (tuple(value), torch.float32) if not value or isinstance(value[0], int) else _typed(value)
        for key, value in found["keys"].items()
    }
    return Official(name, found["source"], found["parameters"], keys)


def _typed(value: list[Any]) -> tuple[tuple[int, ...], torch.dtype]:
    shape, dtype = value
    return tuple(shape), getattr(torch, dtype)


def names() -> list[str]:
    """Every published variant that has a checkpoint."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def of_family(family: str) -> list[str]:
    """The variants whose recipes belong to a family."""
    known = recipes.recipes()
    found = [name for name in names() if (r := known.get(official(name).recipe)) is not None and r.family == family]
    assert found, family
    return found
