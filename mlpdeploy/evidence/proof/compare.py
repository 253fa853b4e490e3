"""How far one output is from its reference, in float64, as a frozen result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from decimal import ROUND_UP, Context
from typing import Any

import numpy as np

from mlpdeploy.errors import InputError

OTHER_SCALE = 10.0


@dataclass(frozen=True)
class Agreement:
    """How often two sets of logits name the same classes."""

    images: int
    top1: float
    """Share of images with the same largest logit."""
    top5: float | None
    """Mean share of the reference's five largest that are among the five largest; None below six classes."""
    margin: float
    """Smallest gap between the reference's two largest logits, relative to max|reference| of that image."""


@dataclass(frozen=True)
class Comparison:
    """One output against its reference, over the rows of a batch.

    `max_relative` is the worst row's max|a - reference| / max|reference|, where a row smaller than usual counts as
    usual. `relative_l2` is ||a - reference|| / ||reference|| over everything. Both are infinite where a value is not
    finite.
    """

    rows: int
    max_relative: float
    worst_row: int
    relative_l2: float
    finite: bool

    def within(self, tolerance: float) -> bool:
        """Whether every value is finite and no row is further off than `tolerance`."""
        return self.finite and self.max_relative <= tolerance

    @property
    def passing_tolerance(self) -> float | None:
        """The smallest tolerance of two digits that would have passed; None where no tolerance would."""
        if not self.finite or math.isinf(self.max_relative):
            return None
        return round_up(self.max_relative)

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON values; what is infinite becomes None."""
        return {key: None if value == math.inf else value for key, value in asdict(self).items()}


def round_up(value: float, digits: int = 2) -> float:
    """`value`, not negative, rounded up to so many significant digits."""
    # The decimal is exact and not below the value, and rounding it to a float keeps that order.
    return float(Context(prec=digits, rounding=ROUND_UP).create_decimal_from_float(value))


def usual(outputs: Mapping[str, np.ndarray], name: str) -> float:
    """The size of a row of an output: the median of max|row|, over its rows or over those of all outputs of its shape.

    An output of one or two values a row (a probability, the logits of one finding) comes near zero now and then, and
    no arithmetic is exact relative to that: the error of a sum is relative to its terms. Outputs of one shape, such as
    the logits of several findings, are measured by what is larger, unless this one is of another scale altogether:
    OTHER_SCALE times smaller.
    """
    own = outputs[name]
    alike = [_sizes(other) for other in outputs.values() if other.shape == own.shape]
    size, common = float(np.median(_sizes(own))), float(np.median(np.concatenate(alike)))
    return common if size < common <= OTHER_SCALE * size else size


def _sizes(reference: np.ndarray) -> np.ndarray:
    """max|row| of each row."""
    rows = np.asarray(reference, dtype=np.float64).reshape(len(reference), -1)
    return np.asarray(np.abs(rows).max(axis=1))


def compare(output: np.ndarray, reference: np.ndarray, size: float = 0.0) -> Comparison:
    """Compare arrays of one shape whose first axis is the batch, in float64.

    Errors of rows smaller than `size` (see `usual`) are relative to it. A row whose reference is zero everywhere is
    compared absolutely, without a `size`. Raises ValueError where the shapes differ or the reference is empty or not
    finite: such a reference can prove nothing.
    """
    if reference.ndim == 0 or reference.size == 0:
        raise ValueError(f"a reference of shape {reference.shape} has no rows to compare")
    b = np.asarray(reference, dtype=np.float64).reshape(len(reference), -1)
    if not np.isfinite(b).all():
        raise ValueError("the reference itself holds NaN or infinity")
    relative = row_errors(output, reference, size)
    worst = int(relative.argmax())
    if math.isinf(relative[worst]):
        return Comparison(len(b), math.inf, worst, math.inf, finite=False)
    norm = float(np.linalg.norm(b))
    l2 = float(np.linalg.norm(np.asarray(output, dtype=np.float64).reshape(b.shape) - b)) / (norm if norm > 0 else 1.0)
    return Comparison(len(b), float(relative[worst]), worst, l2, finite=True)


def row_errors(output: np.ndarray, reference: np.ndarray, size: float = 0.0) -> np.ndarray:
    """How far each row is off, as `compare` measures it: (rows,) float64, infinite where a value is not finite.

    Raises ValueError where the shapes differ.
    """
    if output.shape != reference.shape:
        raise ValueError(f"the output has shape {output.shape}, its reference has {reference.shape}")
    a = np.asarray(output, dtype=np.float64).reshape(len(output), -1)
    b = np.asarray(reference, dtype=np.float64).reshape(len(reference), -1)
    scale = np.maximum(np.abs(b).max(axis=1), size)
    finite = np.asarray(np.isfinite(a).all(axis=1))
    difference = np.abs(np.where(finite[:, None], a, 0.0) - b).max(axis=1)
    return np.where(finite, difference / np.where(scale > 0, scale, 1.0), math.inf)


def is_logits(reference: np.ndarray) -> bool:
    """Whether an output reads as one logit a class: (batch, classes) with two classes or more."""
    return reference.ndim == 2 and reference.shape[1] >= 2


def require_classes(labels: np.ndarray, logits: np.ndarray) -> None:
    """Raise InputError where one of the labels (images,) is no class of logits (images, classes)."""
    if labels.max() >= logits.shape[1]:
        raise InputError(f"one of the labels is {labels.max()}; the network has {logits.shape[1]} classes, from 0")


def agreement(logits: np.ndarray, reference: np.ndarray) -> Agreement:
    """Top-1 and top-5 agreement of logits (images, classes) with their reference; a NaN never agrees."""
    if logits.shape != reference.shape or not is_logits(reference) or not len(reference):
        raise ValueError(f"logits of shape {logits.shape} cannot be ranked against {reference.shape}")
    a = np.asarray(logits, dtype=np.float64)
    b = np.asarray(reference, dtype=np.float64)
    whole = np.isfinite(a).all(axis=1)
    order_a, order_b = np.argsort(-a, axis=1, kind="stable"), np.argsort(-b, axis=1, kind="stable")
    top1 = float(((order_a[:, 0] == order_b[:, 0]) & whole).mean())
    top5 = None
    if b.shape[1] > 5:
        shared = [len(set(x[:5]) & set(y[:5])) / 5 for x, y in zip(order_a, order_b, strict=True)]
        top5 = float((np.array(shared) * whole).mean())
    ranked = np.sort(b, axis=1)
    scale = np.abs(b).max(axis=1)
    margin = (ranked[:, -1] - ranked[:, -2]) / np.where(scale > 0, scale, 1.0)
    return Agreement(len(b), top1, top5, float(margin.min()))
