"""The one reader of documents that lie on a disk: manifests, what is attached to an artifact, saved results.

Each is a regular file that holds a JSON object of the kind that `schema` says; anything else is one line that names the
file and what is wrong with it. A kind is

    str, bool, a Number, None       a value of that type
    (kind, ...)                     one of these
    [kind]                          a list
    [kind, ...]                     a list of one at least
    {str: kind}                     an object with any names
    {"name": kind, "more?": kind}   an object with these names at least; one with a question mark may be missing
    object                          anything
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy.errors import ArtifactError, InputError
from mlpdeploy.system import files

if TYPE_CHECKING:
    import onnx

Kind = Any
Document = Mapping[str, Any]
"""What a document holds, as it is read."""


@dataclass(frozen=True)
class Number:
    """A number: `whole` or any, not below `least`, or with `above`, above it."""

    whole: bool = False
    least: float | None = None
    above: bool = False

    def wrong(self, value: Any, where: str) -> str | None:
        """What is wrong with a value, in words; None where nothing is."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return _other(where, "a whole number" if self.whole else "a number", value)
        if self.least is None or value > self.least or (value == self.least and not self.above):
            return None
        return f"{where} is {value}, it must be {'above' if self.above else 'at least'} {self.least:g}"


def read(path: Path, kind: Kind, remedy: str = "make it again") -> dict[str, Any] | None:
    """The object in a file; None where there is no such file.

    Raises ArtifactError where it cannot be read or is of another kind; the line ends with the `remedy`.
    """
    try:
        document = files.read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise ArtifactError(f"{path} is a link to nothing: {remedy}") from None
        return None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ArtifactError(f"{path} cannot be read ({reason}): {remedy}") from error
    if not isinstance(document, dict):
        raise ArtifactError(f"{path} is no document of mlpdeploy: {remedy}")
    if (problem := wrong(document, kind)) is not None:
        raise ArtifactError(f"{path} is damaged or of another version ({problem}): {remedy}")
    return document


def read_model(path: Path) -> onnx.ModelProto:
    """The ONNX file at a path. Raises ArtifactError where it is none, or wants to read numbers from other files."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        with files.opened(path) as file:
            model = onnx.load_model_from_string(file.read())
        onnx.external_data_helper.convert_model_from_external_data(model)
    except (OSError, DecodeError) as error:
        raise ArtifactError(f"{path} cannot be read as ONNX ({error}): build it again with --force") from error
    except ValueError as error:  # numbers that are not in it
        raise ArtifactError(f"{path} keeps numbers in other files, which no build of mlpdeploy does") from error
    return model


def wrong(value: Any, kind: Kind, where: str = "") -> str | None:
    """What is wrong with a JSON value that should be of a kind, in words; None where nothing is."""
    if kind is object:
        return None
    if isinstance(kind, Number):
        return kind.wrong(value, where)
    if isinstance(kind, tuple):
        found = [wrong(value, one, where) for one in kind]
        # Of an object or a list it is told what is wrong in it, rather than that it is not null.
        return None if None in found else max((one for one in found if one), key=lambda one: len(one.split(" is ")[0]))
    if kind is None:
        return None if value is None else _other(where, "null", value)
    if isinstance(kind, list):
        if not isinstance(value, list):
            return _other(where, "a list", value)
        if not value and len(kind) > 1:
            return f"{where or 'it'} is empty"
        return _first(wrong(one, kind[0], f"{where}[{index}]") for index, one in enumerate(value))
    if isinstance(kind, dict):
        return _wrong_object(value, kind, where)
    return None if isinstance(value, kind) else _other(where, {str: "text", bool: "true or false"}[kind], value)


def _wrong_object(value: Any, kind: dict[Any, Kind], where: str) -> str | None:
    if not isinstance(value, dict):
        return _other(where, "an object", value)
    if str in kind:
        return _first(wrong(one, kind[str], _within(where, name)) for name, one in value.items())
    fields = {name.removesuffix("?"): one for name, one in kind.items()}
    missing = next((name for name in kind if not name.endswith("?") and name not in value), None)
    if missing is not None:
        return f"{_within(where, missing)} is missing"
    return _first(wrong(value[name], one, _within(where, name)) for name, one in fields.items() if name in value)


def _first(problems: Any) -> str | None:
    return next((problem for problem in problems if problem is not None), None)


def _within(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _other(where: str, wanted: str, value: Any) -> str:
    given = {bool: "true or false", dict: "an object", list: "a list", str: "text", type(None): "null"}
    return f"{where or 'it'} is {given.get(type(value), 'a number')}, it must be {wanted}"


def saved(path: Path, kinds: Collection[str], version: int, called: str, again: str) -> dict[str, Any]:
    """A document of one of these kinds that a command saved, whose values are still to be looked at.

    `called` is whose result it should be, `again` what to do for another. Raises InputError, one line, where it is
    missing, is something else or of another version.
    """
    try:
        document = files.read_json(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}): give a saved result") from error
    except ValueError as error:
        raise InputError(f"{path}: is no JSON document ({error}): it was cut short, or is something else") from error
    if not isinstance(document, dict) or document.get("kind") not in kinds:
        raise InputError(f"{path}: is no result of {called}")
    if document.get("schema") != version:
        raise InputError(f"{path}: has schema {document.get('schema')}, this mlpdeploy reads {version}: {again}")
    return document
