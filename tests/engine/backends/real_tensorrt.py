"""TensorRT's own Python package without its libraries: classes, enums and signatures are real, its objects are not.

NVIDIA's bindings are a wheel of one megabyte that needs libraries of a gigabyte, of which it calls a few functions by
name. Empty ones are compiled in their place: the package can then be imported, and knows every name and type. `Typed`
objects stand for those that only the libraries can make: they have what their class has, and nothing else, take what
its signatures take, and give values of the types that these say.
"""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
import types
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

PACKAGES = {"10.13.3.9.post1": "tensorrt-cu12-bindings", "11.4.0.106": "tensorrt-cu13-bindings"}
"""The oldest version that is served, and the newest that was tried, with the wheel that has each."""
MADE = ("Builder", "Runtime", "OnnxParser")
"""Classes that are called; objects of others come from these."""
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
CALLED = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip


def installed(version: str, folder: Path) -> dict[str, str]:
    """The environment of a process that can import that version, which is fetched into `folder`."""
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*fetch, f"{PACKAGES[version]}=={version}"], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (folder / "tensorrt_bindings").rename(folder / "tensorrt")
    (folder / "empty.c").write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in CALLED))
    compiler = shutil.which("gcc") or "cc"
    for name in LIBRARIES:
        library = f"lib{name}.so.{version.partition('.')[0]}"
        made = ["-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", str(folder / library), str(folder / "empty.c")]
        subprocess.run([compiler, *made], check=True)
    return {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}


class Typed:
    """An object of a class of TensorRT's. Raises AttributeError and TypeError where a real one would."""

    def __init__(self, trt: Any, kind: type, **values: Any) -> None:
        """`values`: what some of its members give, or do, instead."""
        for name in values:
            inspect.getattr_static(kind, name)
        vars(self).update(_trt=trt, _kind=kind, _values=values)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return self._kind  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        if name in self._values:
            return self._values[name]
        found = inspect.getattr_static(self._kind, name)
        if isinstance(found, property):
            return made(self._trt, _returned(found.fget.__doc__))
        return lambda *given, **named: called(self._trt, f"{self._kind.__name__}.{name}", found, (self, *given), named)

    def __bytes__(self) -> bytes:
        return b"serialised"

    def __iter__(self) -> Iterator[Any]:
        with suppress(IndexError):
            yield from (self.__getattr__("__getitem__")(place) for place in count())

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__class__":
            vars(self)["_kind"] = value
            return
        found = inspect.getattr_static(self._kind, name)
        if not isinstance(found, property) or found.fset is None:
            raise AttributeError(f"{self._kind.__name__}.{name} cannot be set")
        self._values[name] = value


def module(trt: Any) -> Any:
    """TensorRT's module, whose classes with a hidden constructor make `Typed` objects."""

    class Module(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            found = getattr(trt, name)
            if name not in MADE:
                return found
            return lambda *given, **named: called(trt, name, found.__init__, (Typed(trt, found), *given), named)

    return Module(trt.__name__)


def called(trt: Any, name: str, function: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """What a call returns, by the first signature of the docstring that takes the arguments. Raises TypeError."""
    signatures = list(_signatures(function.__doc__ or ""))
    for parameters, returned in signatures:
        try:
            parameters.bind(*given, **named)
        except TypeError:
            continue
        return given[0] if name in MADE else made(trt, returned)
    raise TypeError(f"{name} takes {[str(one) for one, _ in signatures]}, not {len(given)} arguments and {[*named]}")


def made(trt: Any, annotation: str) -> Any:
    """A value of the type that a docstring names."""
    plain = {"bool": True, "int": 1, "float": 1.0, "str": "", "None": None, "object": None, "capsule": None}
    if annotation in plain:
        return plain[annotation]
    if annotation.startswith(("list", "List", "tuple", "Tuple")):
        return []
    kind = getattr(trt, _class(annotation))
    if hasattr(kind, "__members__"):
        return next(iter(kind.__members__.values()))
    return kind((1, 8)) if kind.__name__ in ("Dims", "Permutation") else Typed(trt, kind)


def _class(annotation: str) -> str:
    """A class by the name that Python knows it by: some signatures have that of C++."""
    name = re.split(r"[.:]+", annotation)[-1]
    return {"IParserError": "ParserError", "IBuilder": "Builder", "IRuntime": "Runtime"}.get(name, name)


def _returned(doc: str | None) -> str:
    found = re.search(r"\) -> ([\w.:\[\], ]+)", doc or "")
    return found[1] if found else "object"


_LINE = re.compile(r"^(?:\d+\. )?\w+\((.*)\) -> ([\w.:\[\], ]+)$", re.M)


@cache
def _signatures(doc: str) -> tuple[tuple[inspect.Signature, str], ...]:
    """The parameters and the result of each overload that a docstring of pybind11 lists."""
    return tuple((_parameters(line[1]), line[2]) for line in _LINE.finditer(doc) if "*args" not in line[1])


def _parameters(text: str) -> inspect.Signature:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    found = []
    for part in _parts(text):
        name, _, rest = part.partition(":")
        default = None if "=" in rest else inspect.Parameter.empty
        found.append(inspect.Parameter(name.strip(), kind, default=default))
    return inspect.Signature(found)


def _parts(text: str) -> Iterator[str]:
    """The parameters of a signature, whose types and defaults may have commas of their own within brackets."""
    depth, part = 0, ""
    for letter in text:
        depth += (letter in "[(<{") - (letter in "])>}")
        if letter == "," and depth == 0:
            yield part
            part = ""
        else:
            part += letter
    if part.strip():
        yield part
