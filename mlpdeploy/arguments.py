"""A selection as the arguments of a command, for another process or for a reader to type.

What a command takes is read from its own signature: nothing is lost on the way, and nothing given where it is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlpdeploy.options import CALLED

ALWAYS = ("precision", "backend", "batch")
"""What is said even where it is usual: what is usual may be something else in another version."""


def arguments(command: str, selection: Mapping[str, Any]) -> list[str]:
    """The words behind `mlpdeploy COMMAND` that give a selection, as `Selection.to_json` has it, and perhaps its `out`.

    Values that are the command's own defaults are left out, since an older version may lack their options.
    """
    import typer

    from mlpdeploy.cli import app

    given = {CALLED.get(field, field): value for field, value in selection.items()}
    words: list[str] = []
    for parameter in typer.main.get_command(app).commands[command].params:  # type: ignore[attr-defined]
        value, usual = given.get(parameter.name), parameter.default
        if parameter.param_type_name == "argument":
            words.append(str(value))
        elif value is False and parameter.secondary_opts and usual is None:
            words.append(parameter.secondary_opts[0])
        elif value is None or value is False or value == []:
            continue
        elif value is True:
            words.append(parameter.opts[0])
        elif parameter.multiple:
            words += [word for one in value for word in (parameter.opts[0], str(one))]
        elif parameter.name in ALWAYS or usual is None or str(value) != str(usual):
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words += [parameter.opts[0], text]
    return words
