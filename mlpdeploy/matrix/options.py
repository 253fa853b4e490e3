"""The options of a plan as the command line has them: which there are, their values, and the words of a command."""

from __future__ import annotations

import difflib
import math
import re
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import Field
from pathlib import Path
from typing import Any

from mlpdeploy.artifact.schema import SELECTION
from mlpdeploy.errors import InputError
from mlpdeploy.evidence.documents.matrix import Needs
from mlpdeploy.matrix.job import BENCH, BUILD, EVALUATE, REGRESS, VERIFY, Asked
from mlpdeploy.selection import Selection
from mlpdeploy.selection.option import Option
from mlpdeploy.selection.parse import parse_sizes
from mlpdeploy.system import documents
from mlpdeploy.system.documents import Number
from mlpdeploy.system.files import LARGEST_NUMBER

NETWORK = "network"
"""What a plan calls the NAME of the command line."""
TEXTS = (str, [str])
"""A text, or several that commas part on the command line."""
WHOLE, SECONDS = Number(whole=True, least=1), Number(least=0, above=True)
SIZES = (str, WHOLE, [WHOLE])
STEPS: dict[str, dict[str, Any]] = {
    BUILD: {"search": SECONDS, "tactics": SECONDS, "worth": bool},
    VERIFY: {"data": str, "quick": bool, "trust": bool},
    EVALUATE: {
        "data": str, "only": TEXTS, "class-map": str, "limit": WHOLE, "workers": WHOLE, "trust": bool,
    },
    BENCH: {
        "against": TEXTS, "batch": SIZES, "threads": WHOLE, "time": SECONDS, "credit": bool, "trust": bool,
    },
    REGRESS: {
        "baseline": str, "max-slowdown": str, "max-accuracy-loss": str, "max-size-growth": str,
        "max-memory-growth": str, "max-build-growth": str, "accept": TEXTS, "undecided": str, "batch": SIZES,
        "threads": WHOLE, "time": SECONDS, "data": str, "trust": bool,
    },
}  # fmt: skip
"""What each command of a job can be told beside its selection, and of which kind that is."""
NEEDED = {EVALUATE: "data", REGRESS: "baseline"}
REPEATED = ("accept",)
MEMORY = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12} | {
    f"{letter}i": 1 << 10 * place for place, letter in enumerate("kmgt", 1)
}
CALIBRATED = ("calibration", "calibrator", "max_drop", "min_sqnr")
"""Fields that only a selection in 8 bits takes; in a plan they are left out of the others."""
SHOWN = ("name", "precision", "backend", "batch")
"""Fields that a text of a plan can hold in braces: the network is `{network}`."""


def _called(field: Field[Any]) -> str:
    how: Option | None = field.metadata.get("option")
    flag = f"--{field.name.replace('_', '-')}" if how is None or how.flag is None else how.flag
    return NETWORK if field.name == "name" else flag.partition("/")[0].removeprefix("--")


FIELDS = {_called(field): field for field in Selection.fields()}
"""The fields of a selection by what a plan calls them."""
CALLED = {field.name: called for called, field in FIELDS.items()}
_KINDS = {name.removesuffix("?"): kind for name, kind in SELECTION.items()} | {"timing_cache": (str, None), "out": str}
_PATHS = {name for name, hint in typing.get_type_hints(Selection).items() if Path in (hint, *typing.get_args(hint))}


def known(where: str, names: Collection[str], options: Collection[str]) -> None:
    """Raise InputError for a name that is none of these options, with the nearest one."""
    for name in names:
        if name not in options:
            near = difflib.get_close_matches(name, options, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(options)}"
            raise InputError(f"{where}: nothing is called {name}; {hint}")


def choices(where: str, name: str, given: Any) -> list[Any]:
    """The values that an option of a selection takes one after the other: a list is several, all else one.

    An option that may be repeated takes a list as one value, and several of a list of lists.
    """
    field = FIELDS[name]
    how: Option = field.metadata.get("option") or Option("")
    several = isinstance(given, list) and (not how.repeated or any(isinstance(one, list) for one in given))
    if given == [] and not how.repeated:
        raise InputError(f"{where}: {name} is an empty list: give one value at least, or leave it out")
    return [_value(where, name, field, how, one) for one in (given if several else [given])]


def _value(where: str, name: str, field: Field[Any], how: Option, given: Any) -> Any:
    if field.name == "batch" and isinstance(given, int) and not isinstance(given, bool):
        given = str(given)
    if how.repeated and isinstance(given, str):
        given = [given]
    sound(where, name, given)
    kind = str if how.parse is not None else _KINDS[field.name]
    if (problem := documents.wrong(given, kind, name)) is not None:
        raise InputError(f"{where}: {problem}")
    if how.parse is not None:
        try:
            return how.parse(given)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    if field.name in _PATHS:
        return Path(given)
    return tuple(given) if isinstance(given, list) else given


def sound(where: str, name: str, given: Any) -> None:
    """Raise InputError for a number that no document can hold, and for a text that is empty, or that a line is not."""
    for one in given if isinstance(given, list) else [given]:
        if isinstance(one, int | float) and not (math.isfinite(one) and abs(one) < LARGEST_NUMBER):
            raise InputError(f"{where}: {name} is a number that is too large, or none")
        if isinstance(one, str) and (not one.strip() or not one.isprintable()):
            raise InputError(f"{where}: {name} {one!r}: give a text of one line that is not empty")


def asked(where: str, step: str, given: Any) -> Asked | None:
    """A command of a job, from true, false or a table of its options; None of false."""
    options = {} if isinstance(given, bool) else given
    if not isinstance(options, dict):
        raise InputError(f"{where}: {step} is {given!r}: give true, false or a table of its options")
    known(f"{where}: {step}", options, STEPS[step])
    for name, value in options.items():
        sound(where, f"{step}.{name}", value)
        if (problem := documents.wrong(value, STEPS[step][name], f"{step}.{name}")) is not None:
            raise InputError(f"{where}: {problem}")
    if given is False:
        return None
    if (needed := NEEDED.get(step)) is not None and needed not in options:
        raise InputError(f"{where}: {step} needs {needed}, as in {step} = {{ {needed} = ... }}")
    if step in (BENCH, REGRESS) and "batch" in options:
        try:
            parse_sizes(_text(options["batch"]))
        except InputError as error:
            raise InputError(f"{where}: {step}.{error}") from error
    return Asked(step, options)


def filled(selection: Selection, text: Any) -> Any:
    """A text of a plan with {network}, {precision}, {backend} and {batch} as the selection has them, fit for paths."""
    if not isinstance(text, str) or "{" not in text:
        return text
    for name in SHOWN:
        value = selection.folder_name if name == "name" else str(getattr(selection, name))
        text = text.replace(f"{{{CALLED[name]}}}", re.sub(r"[^\w.-]+", "-", value))
    return text


def needs(where: str, given: Any) -> dict[str, Any]:
    """What a plan says that jobs need, as the fields of `Needs`."""
    kind = {"cpus?": WHOLE, "memory?": (str, WHOLE), "gpu?": str}
    if (problem := documents.wrong(given, kind, "needs")) is not None:
        raise InputError(f"{where}: {problem}")
    known(f"{where}: needs", given, Needs.__dataclass_fields__)
    for name, value in given.items():
        sound(where, f"needs.{name}", value)
    return {**given, "memory": _bytes(where, given["memory"])} if "memory" in given else dict(given)


def _bytes(where: str, given: str | int) -> int:
    """8GiB, 512 MB or a number of bytes."""
    found = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*(|[kmgt]i?)b?", str(given).strip().lower())
    size = 0 if found is None else int(float(found[1]) * MEMORY[found[2]])
    if not 1 <= size < LARGEST_NUMBER:
        raise InputError(f"{where}: needs.memory {given!r}: give bytes, or a size such as 8GiB")
    return size


def words(step: str, options: Mapping[str, Any]) -> list[str]:
    """A command's own options as its arguments."""
    found: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            found += [f"--{name}"] if value else ["--no-worth"] if name == "worth" else []
        elif name in REPEATED:
            found += [word for one in _each(value) for word in (f"--{name}", one)]
        else:
            found += [f"--{name}", _text(value)]
    return found


def _each(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
