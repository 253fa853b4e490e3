"""The values of fields by their types: what means the same is converted, and all else is refused in one line."""

from __future__ import annotations

import os
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

from mlpdeploy.errors import InputError

_WORDS = {str: "words", int: "a whole number", float: "a number", bool: "True or False", Path: "a path"}


def fit(selection: object) -> None:
    """Give the fields of a frozen dataclass the types that they are declared with, in place.

    Raises InputError, naming the field, where a value is of another kind.
    """
    for name, kind in _kinds(type(selection)).items():
        object.__setattr__(selection, name, fitted(name, getattr(selection, name), kind))


def words(name: str, value: Any) -> tuple[str, ...]:
    """Several words. Raises InputError where there is one alone, whose letters would be taken for them."""
    made: tuple[str, ...] = fitted(name, value, tuple[str, ...])
    return made


def fitted(name: str, value: Any, kind: Any) -> Any:
    """A value as one of `kind`: a type, a tuple of such, or one of these or None."""
    kinds = typing.get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if value is None and NoneType in kinds:
        return None
    (kind,) = (one for one in kinds if one is not NoneType)
    if typing.get_origin(kind) is tuple:
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            raise InputError(f"{name} {value!r}: give a list or tuple of {_each(kind)}")
        return tuple(fitted(name, one, typing.get_args(kind)[0]) for one in value)
    found = _converted(value, kind)
    if found is None:
        raise InputError(f"{name} {value!r}: it must be {_WORDS[kind]}")
    return found


def _kinds(cls: Any) -> dict[str, Any]:
    names = {field.name for field in fields(cls)}
    return {name: kind for name, kind in typing.get_type_hints(cls).items() if name in names}


def _each(kind: Any) -> str:
    return {str: "words", int: "whole numbers", float: "numbers"}[typing.get_args(kind)[0]]


def _converted(value: Any, kind: type) -> Any:
    """A value as one of a type; None where it is of another."""
    if kind is bool or isinstance(value, bool):
        return value if kind is bool and isinstance(value, bool) else None
    if kind is Path:
        return Path(value) if isinstance(value, str | os.PathLike) else None
    if kind is str:
        return str(value) if isinstance(value, str | Path | Integral) else None
    return kind(value) if isinstance(value, Integral if kind is int else Real) else None
