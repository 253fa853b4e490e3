"""Words of the command line as values: batch sizes, shapes, inputs, numbers. All raise InputError where it is none."""

from __future__ import annotations

import re

from mlpdeploy.engine.batch import Batch
from mlpdeploy.errors import InputError
from mlpdeploy.zoo.recipe import Input

MOST_PROFILES = 16
"""Each is compiled as an engine of its own."""


def parse_batch(text: str) -> Batch:
    """MIN:OPT:MAX, or one number for all three, 1 <= MIN <= OPT <= MAX; several with commas leave no size out."""
    profiles = [_parse_profile(text, one) for one in text.split(",")]
    if len(set(profiles)) < len(profiles):
        raise InputError(f"batch {text!r}: give each optimisation profile once")
    if len(profiles) > MOST_PROFILES:
        raise InputError(f"batch {text!r}: give {MOST_PROFILES} optimisation profiles at most")
    reached = None
    for low, _, high in sorted(profiles):
        if reached is not None and low > reached + 1:
            raise InputError(f"batch {text!r}: no profile holds {reached + 1}; together they must leave no size out")
        reached = max(high, reached or 0)
    return Batch.of(profiles)


def _parse_profile(text: str, part: str) -> tuple[int, int, int]:
    parts = part.strip().split(":")
    if len(parts) not in (1, 3) or not all(re.fullmatch(r"[0-9]{1,6}", one) for one in parts):
        raise InputError(f"batch {text!r}: give MIN:OPT:MAX such as 1:8:32, or one number; up to 999999")
    low, opt, high = (int(one) for one in (parts * 3 if len(parts) == 1 else parts))
    if low < 1:
        raise InputError(f"batch {text!r}: the smallest batch is 1")
    if not low <= opt <= high:
        raise InputError(f"batch {text!r}: it must be MIN <= OPT <= MAX")
    return low, opt, high


def parse_sizes(text: str | None) -> tuple[int, ...]:
    """1,8,64 as whole numbers from 1; none of None."""
    parts = [] if text is None else text.split(",")
    if not all(re.fullmatch(r"\s*[1-9][0-9]{0,5}\s*", part) for part in parts):
        raise InputError(f"batch {text!r}: give the sizes to time, such as 1,8,64")
    return tuple(int(part) for part in parts)


def parse_shape(text: str) -> tuple[int, ...]:
    """C,H,W as positive whole numbers."""
    parts = re.split(r"[,x]", text.strip())
    if not all(re.fullmatch(r"[1-9][0-9]{0,6}", part) for part in parts):
        raise InputError(
            f"input shape {text!r}: give positive sizes up to 9999999 without the batch, such as 3,224,224"
        )
    return tuple(int(part) for part in parts)


def parse_input(text: str) -> Input:
    """NAME:SHAPE[:float32[:LOW..HIGH]] or NAME:SHAPE:int64:LOW..HIGH, a shape without the batch (none: one number)."""
    found = re.fullmatch(r"(\w+):([0-9,x]*)(?::(float32|int64))?(?::(-?[0-9]{1,18})\.\.(-?[0-9]{1,18}))?", text.strip())
    if found is None:
        raise InputError(
            f"input {text!r}: give NAME:SHAPE[:DTYPE[:LOW..HIGH]], such as x:3,224,224 or ids:16:int64:0..999; "
            "DTYPE is float32, or int64 for whole numbers of any kind"
        )
    name, shape, dtype, low, high = found.groups()
    if dtype == "int64" and low is None:
        raise InputError(f"input {text!r}: say which whole numbers it may hold, such as {name}:{shape}:int64:0..999")
    # Of whole numbers the highest is one that there may be; an Input says the first that there may not.
    bounds = () if low is None else (int(low), int(high) + (dtype == "int64"))
    if bounds and bounds[0] >= bounds[1]:
        raise InputError(f"input {text!r}: {low}..{high} holds nothing")
    return Input(name, parse_shape(shape) if shape else (), "int64" if dtype == "int64" else "float32", *bounds)


def parse_pixels(text: str) -> tuple[str, tuple[int, int] | None]:
    """hwc or chw, and the height and width behind it where there is one: hwc:480x640."""
    found = re.fullmatch(r"(hwc|chw)(?::([1-9][0-9]{0,4})x([1-9][0-9]{0,4}))?", text.strip())
    if found is None:
        raise InputError(f"pixels {text!r}: give hwc or chw, perhaps with the size of all images, such as hwc:480x640")
    layout, height, width = found.groups()
    return layout, None if height is None else (int(height), int(width))


def parse_mean(text: str) -> tuple[float, ...]:
    """0.485,0.456,0.406 as numbers, one a channel."""
    return _channels("--mean", text)


def parse_std(text: str) -> tuple[float, ...]:
    """0.229,0.224,0.225 as numbers, one a channel."""
    return _channels("--std", text)


def parse_words(text: str) -> tuple[str, ...]:
    """a,b as words."""
    return tuple(part.strip() for part in text.split(","))


def _channels(option: str, text: str) -> tuple[float, ...]:
    parts = text.split(",")
    if not all(re.fullmatch(r"\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,3})?\s*", part) for part in parts):
        raise InputError(f"{option} {text!r}: give one number a channel, such as 0.485,0.456,0.406")
    return tuple(map(float, parts))
