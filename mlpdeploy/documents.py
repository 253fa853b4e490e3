"""The one reader of documents that lie on a disk: manifests, what is attached to an artifact, saved results.

Each is a regular file of JSON values, of the kinds that `schema` and `schema_found` say; anything else is one line that
names the file and what is wrong with it.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlpdeploy import files
from mlpdeploy.errors import ArtifactError

WORDS = {
    str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object", list: "a list",
}  # fmt: skip


def load(path: Path, remedy: str = "make it again") -> Any:
    """The JSON value in a file; None where there is no such file. Raises ArtifactError where it cannot be read."""
    try:
        return files.read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ArtifactError(f"{path} cannot be read ({reason}): {remedy}") from error


def read(path: Path, kind: Any = None) -> dict[str, Any] | None:
    """The object in a file, held against `kind` where one is given; None where there is no such file.

    Raises ArtifactError where it cannot be read or is of another kind.
    """
    document = load(path)
    if document is not None and not isinstance(document, dict):
        raise ArtifactError(f"{path} is no document of mlpdeploy: make it again")
    if document is not None and kind is not None and (problem := wrong(document, kind)) is not None:
        raise ArtifactError(f"{path} is damaged or of another version ({problem}): make it again")
    return document


def wrong(value: Any, kind: Any, where: str = "", *, partly: bool = False) -> str | None:
    """What is wrong with a JSON value that should be of a kind, in words; None where nothing is.

    Kinds are those of `typing`, TypedDicts, and dataclasses, whose fields with a default may be missing. With `partly`,
    fields of the outermost object may be missing as well.
    """
    if kind is Any:
        return None
    origin = typing.get_origin(kind)
    if typing.is_typeddict(kind) or dataclasses.is_dataclass(kind):
        return _wrong_object(value, kind, where, partly)
    if origin is typing.Annotated:
        kind, limit = typing.get_args(kind)
        problem = wrong(value, kind, where)
        if problem is None and (needed := limit.refuses(value)) is not None:
            return f"{where} is {value}, it must be {needed}"
        return problem
    if origin in (typing.Union, types.UnionType):
        found = [wrong(value, one, where) for one in typing.get_args(kind)]
        return None if None in found else found[0]
    if origin in (list, tuple):
        return _wrong_items(value, typing.get_args(kind)[0], where)
    if origin in (dict, Mapping):
        return _wrong_values(value, typing.get_args(kind)[1], where)
    if kind is type(None):
        return None if value is None else _other(where, "nothing", value)
    kind = str if kind is Path else kind
    fits = isinstance(value, int | float if kind is float else kind)
    return None if fits and isinstance(value, bool) == (kind is bool) else _other(where, WORDS[kind], value)


def missing(value: dict[str, Any], kind: Any) -> list[str]:
    """The fields that an object of a kind lacks."""
    return [name for name, (_, needed) in _fields(kind).items() if needed and name not in value]


def _wrong_object(value: Any, kind: Any, where: str, partly: bool) -> str | None:
    if not isinstance(value, dict):
        return _other(where, "an object", value)
    if not partly and (lacking := missing(value, kind)):
        return f"{where}.{lacking[0]} is missing".lstrip(".")
    known = ((name, hint) for name, (hint, _) in _fields(kind).items() if name in value)
    problems = (wrong(value[name], hint, f"{where}.{name}".lstrip(".")) for name, hint in known)
    return next((problem for problem in problems if problem is not None), None)


@functools.cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """The fields of an object: what each holds, and whether it has to be there."""
    hints = typing.get_type_hints(kind, include_extras=True)
    if dataclasses.is_dataclass(kind):
        fields, none = dataclasses.fields(kind), dataclasses.MISSING
        return {one.name: (hints[one.name], one.default is one.default_factory is none) for one in fields}
    found = {}
    for name, hint in hints.items():
        optional = typing.get_origin(hint) is typing.NotRequired
        found[name] = (typing.get_args(hint)[0] if optional else hint, not optional)
    return found


def _wrong_items(value: Any, kind: Any, where: str) -> str | None:
    if not isinstance(value, list):
        return _other(where, "a list", value)
    problems = (wrong(one, kind, f"{where}[{index}]") for index, one in enumerate(value))
    return next((problem for problem in problems if problem is not None), None)


def _wrong_values(value: Any, kind: Any, where: str) -> str | None:
    if not isinstance(value, dict):
        return _other(where, "an object", value)
    problems = (wrong(one, kind, f"{where}.{name}") for name, one in value.items())
    return next((problem for problem in problems if problem is not None), None)


def _other(where: str, wanted: str, value: Any) -> str:
    given = "null" if value is None else WORDS[type(value)]
    return f"{where} is {given}, it must be {wanted}"
