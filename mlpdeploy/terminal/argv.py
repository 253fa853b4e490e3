"""The words of a command line before they are parsed: what may stand anywhere or be left out, and must not be empty."""

from __future__ import annotations

from collections.abc import Sequence

from mlpdeploy.errors import InputError
from mlpdeploy.search import SECONDS, TACTICS

USUAL = {"--search": SECONDS, "--tactics": TACTICS}
"""Options whose seconds may be left out."""


def device_first(arguments: list[str]) -> list[str]:
    """With `--device N` in front, where it is read. Raises InputError where N is missing, or it stands there twice."""
    places = [place for place, word in enumerate(arguments) if word == "--device" or word.startswith("--device=")]
    if places and (len(places) > 1 or arguments[-1] == "--device"):
        raise InputError("--device: give one GPU's number, or its UUID, which begins with GPU-")
    for place, argument in enumerate(arguments):
        if argument.startswith("--device="):
            return [argument, *arguments[:place], *arguments[place + 1 :]]
        if argument == "--device":
            return [*arguments[place : place + 2], *arguments[:place], *arguments[place + 2 :]]
    return arguments


def with_seconds(arguments: list[str]) -> list[str]:
    """With the usual seconds behind a `--search` or `--tactics` that is given none."""
    found = []
    for word, behind in zip(arguments, [*arguments[1:], ""], strict=False):
        found += [word, f"{USUAL[word]:g}"] if word in USUAL and not _is_number(behind) else [word]
    return found


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def require_words(arguments: Sequence[str]) -> None:
    """Raise InputError for an empty argument: a path that is empty would be the folder that one is in."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option, equals, value = argument.partition("=")
        if not argument or (equals and not value and option.startswith("--")):
            where = option or before
            raise InputError(f"{where + ': ' if where else ''}an argument is empty; is a variable of the shell unset?")
