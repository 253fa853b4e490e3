"""A selection as the arguments of a command, for another process or for a reader to type.

Each field says how it is asked for (see `option.Option`), as the command line's own options do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlpdeploy.selection import Selection
from mlpdeploy.selection.option import Option

ALWAYS = ("precision", "backend", "batch")
"""What is said even where it is usual: what is usual may be something else in another version."""
CALIBRATION = ("calibration", "calibrator", "max_drop", "min_sqnr")
"""Fields of how 8 bits are calibrated, which an engine that is built knows."""
FIELDS = tuple(field.name for field in Selection.fields() if field.name != "name")
"""All that can be asked for behind a name, in the order in which help shows it."""
TAKES = {
    "build": FIELDS,
    "verify": tuple(name for name in FIELDS if name not in (*CALIBRATION, "timing_cache")),
    "bench": FIELDS,
    "regress": FIELDS,
}
"""The fields that a command asks for."""


def arguments(command: str, selection: Mapping[str, Any]) -> list[str]:
    """The words behind `mlpdeploy COMMAND` that give a selection, as `Selection.to_json` has it, and perhaps its `out`.

    What is usual is left out, since an older version may lack the option.
    """
    words = [str(selection["name"])]
    for field in Selection.fields():
        if field.name in TAKES[command] and field.name in selection:
            words += _words(field.name, field.metadata["option"], selection[field.name], field.default)
    return words


def _words(name: str, how: Option, value: Any, usual: Any) -> list[str]:
    flag, *negative = (how.flag or f"--{name.replace('_', '-')}").split("/")
    if value is False and negative:
        return negative
    if value is None or value is False or value == []:
        return []
    if value is True:
        return [flag]
    if how.repeated:
        return [word for one in value for word in (flag, str(one))]
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return [flag, text] if name in ALWAYS or usual is None or text != str(usual) else []
