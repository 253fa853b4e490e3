"""A form: a rewrite of the ONNX file for one engine, which then computes the same function in other operations."""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlpdeploy.engine import forms as _package

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Form:
    """One use of `forms/<name>.py` by a backend; forms run in the order in which the backend lists them.

    `precisions`: of the engines that it is for (none: all). `needed`: whether the engine refuses files, or answers
    wrongly, without it; any other only saves time. `options` are what its `rewrite` takes beside the model.
    """

    name: str
    precisions: tuple[str, ...] = ()
    needed: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def rewrite(self, model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
        """The model in this form, and at how many places it is another. What is given stays as it is."""
        made: tuple[onnx.ModelProto, int] = _module(self.name).rewrite(model, **self.options)
        return made


@dataclass(frozen=True)
class FormReport:
    """What one form did to a file."""

    name: str
    fired: int
    seconds: float


@dataclass(frozen=True)
class Prepared:
    """A file as an engine compiles it, and what its forms did."""

    model: onnx.ModelProto
    forms: tuple[FormReport, ...] = ()


def prepare(model: onnx.ModelProto, forms: Sequence[Form], precision: str, disabled: Collection[str] = ()) -> Prepared:
    """Run the forms that serve a precision, in their order, but none of the `disabled`."""
    reports = []
    for form in forms:
        if form.name in disabled or (form.precisions and precision not in form.precisions):
            continue
        started = time.perf_counter()
        model, fired = form.rewrite(model)
        reports.append(FormReport(form.name, fired, time.perf_counter() - started))
    return Prepared(model, tuple(reports))


def needed(forms: Sequence[Form]) -> set[str]:
    """The names of those without which the engine refuses files, or answers wrongly."""
    return {form.name for form in forms if form.needed}


def saving(forms: Sequence[Form]) -> tuple[str, ...]:
    """The names of those that only save time."""
    return tuple(form.name for form in forms if not form.needed)


def names() -> tuple[str, ...]:
    """The names of all forms, without importing one."""
    return tuple(info.name for info in pkgutil.iter_modules(_package.__path__) if not info.name.startswith("_"))


def _module(name: str) -> Any:
    return importlib.import_module(f"{_package.__name__}.{name}")
