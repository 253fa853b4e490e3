"""A stand-in for TensorRT's Python plugin API, written from its public documentation.

It has what a plugin uses of `tensorrt.plugin`: `register`, `autotune` and `aot_impl` with the checks of signatures that
are documented, tensor descriptors with symbolic shapes, launch parameters. `Builder` plays TensorRT: it asks a plugin
for its output, its tactics and its kernel in the order, and with the arguments, that an engine build does. A symbolic
dimension is a function of the batch, so what a launch would be at any batch can be asked afterwards: `symbolic` has the
numbers, shapes and tensors.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.plugins.symbolic import (
    AutoTuneCombination,
    DataType,
    KernelLaunchParams,
    Shape,
    ShapeExpr,
    SymExprs,
    SymInt32,
    SymIntExprs,
    TensorDesc,
)


@dataclass
class Definition:
    """A registered plugin."""

    describe: Callable[..., TensorDesc]
    tensors: list[str]
    attributes: dict[str, Any]
    autotune: Callable[..., list[AutoTuneCombination]] | None = None
    compile: Callable[..., tuple[Any, Any, KernelLaunchParams, SymExprs]] | None = None


@dataclass
class Module:
    """What `import tensorrt.plugin` gives, with a registry of its own."""

    registry: dict[str, Definition] = field(default_factory=dict)
    TensorDesc: type = TensorDesc
    KernelLaunchParams: type = KernelLaunchParams
    SymExprs: type = SymExprs
    SymIntExprs: type = SymIntExprs
    SymInt32: type = SymInt32
    AutoTuneCombination: type = AutoTuneCombination

    def from_shape_expr(self, shape: tuple[int | ShapeExpr, ...], dtype: DataType) -> TensorDesc:
        return TensorDesc([one if isinstance(one, ShapeExpr) else ShapeExpr(one) for one in shape], dtype)

    def register(self, plugin_id: str) -> Callable[[Any], Any]:
        """All arguments are annotated: tensors first, then attributes of serialisable types, without defaults."""
        namespace, name = plugin_id.split("::")
        if "." in namespace + name or namespace in ("", "trt", "tensorrt", "std") or plugin_id in self.registry:
            raise ValueError(f"{plugin_id} cannot be registered")

        def decorate(function: Any) -> Any:
            signature = inspect.signature(function)
            tensors, attributes = [], {}
            for parameter in signature.parameters.values():
                annotation = parameter.annotation
                assert annotation is not inspect.Parameter.empty and parameter.default is inspect.Parameter.empty
                if annotation is TensorDesc:
                    assert not attributes, "tensors come before attributes"
                    tensors.append(parameter.name)
                else:
                    assert parameter.name not in ("outputs", "stream", "tactic")
                    assert annotation in (int, float, bytes, bool, str) or _element(annotation) is not None, annotation
                    attributes[parameter.name] = annotation
            assert tensors and signature.return_annotation is TensorDesc
            self.registry[plugin_id] = Definition(function, tensors, attributes)
            return function

        return decorate

    def autotune(self, plugin_id: str) -> Callable[[Any], Any]:
        def decorate(function: Any) -> Any:
            definition = self.registry[plugin_id]
            _check(function, definition, ["outputs"], list[AutoTuneCombination])
            definition.autotune = function
            return function

        return decorate

    def aot_impl(self, plugin_id: str) -> Callable[[Any], Any]:
        def decorate(function: Any) -> Any:
            definition = self.registry[plugin_id]
            returned = inspect.signature(function).return_annotation
            text = typing.get_args(returned)
            assert typing.get_origin(returned) is tuple and len(text) == 4
            for part in text[:2]:
                options = (
                    typing.get_args(part) if typing.get_origin(part) in (typing.Union, types.UnionType) else (part,)
                )
                assert set(options) <= {str, bytes}
            assert issubclass(text[2], KernelLaunchParams) and issubclass(text[3], SymExprs)
            _check(function, definition, ["outputs", "tactic"], returned)
            definition.compile = function
            return function

        return decorate


def _element(annotation: Any) -> Any:
    """The dtype of `numpy.typing.NDArray[dtype]`."""
    if typing.get_origin(annotation) is not np.ndarray:
        return None
    return typing.get_args(typing.get_args(annotation)[1])[0]


def _check(function: Any, definition: Definition, last: list[str], returned: Any) -> None:
    """The arguments are the registered ones in their order, then `last`; annotations repeat the registered ones."""
    signature = inspect.signature(function)
    assert list(signature.parameters) == [*definition.tensors, *definition.attributes, *last]
    for name, parameter in signature.parameters.items():
        expected = definition.attributes.get(name, tuple[TensorDesc] if name == "outputs" else TensorDesc)
        assert parameter.annotation == (int if name == "tactic" else expected)
    assert signature.return_annotation == returned


@dataclass(frozen=True)
class Kernel:
    """What an engine keeps of one tactic."""

    entry: str
    ptx: str
    launch: KernelLaunchParams
    arguments: SymExprs

    def at(self, batch: int) -> dict[str, int]:
        """The launch at a batch."""
        return {name: getattr(self.launch, name).at(batch) for name in KernelLaunchParams.NAMES}


class Builder:
    """TensorRT while it builds an engine with one plugin: shapes have -1 for the batch, whose bounds are a profile."""

    def __init__(self, module: Module, plugin_id: str, fields: dict[str, list[int]]) -> None:
        self.definition = module.registry[plugin_id]
        assert set(fields) == set(self.definition.attributes)
        # Attributes arrive as the fields that the ONNX parser read, cast to the annotated dtype.
        self.attributes = {
            name: np.array(fields[name]).astype(_element(annotation))
            for name, annotation in self.definition.attributes.items()
        }

    def output(self, shapes: Sequence[tuple[int, ...]], dtype: DataType) -> TensorDesc:
        """The output that the plugin describes, before any shape is known."""
        return self.definition.describe(*self._inputs(shapes, dtype, None), **self.attributes)

    def kernels(
        self, shapes: Sequence[tuple[int, ...]], dtype: DataType, profile: tuple[int, int, int]
    ) -> dict[int, Kernel]:
        """Every tactic that the plugin offers for these inputs, compiled."""
        definition = self.definition
        assert definition.autotune is not None and definition.compile is not None
        inputs = self._inputs(shapes, dtype, profile)
        outputs = (definition.describe(*inputs, **self.attributes),)
        values = list(self.attributes.values())
        offered = definition.autotune(*inputs, *values, outputs)
        assert [combination.types for combination in offered] == [[dtype] * (len(shapes) + 1)]
        found = {}
        for tactic in offered[0].tactics or [0]:
            entry, ptx, launch, arguments = definition.compile(*inputs, *values, outputs, tactic)
            assert isinstance(launch, KernelLaunchParams) and isinstance(arguments, SymExprs)
            assert all(isinstance(argument, SymInt32) for argument in arguments.items)
            found[tactic] = Kernel(_text(entry), _text(ptx), launch, arguments)
        return found

    def _inputs(
        self, shapes: Sequence[tuple[int, ...]], dtype: DataType, profile: tuple[int, int, int] | None
    ) -> list[TensorDesc]:
        described = []
        for shape in shapes:
            exprs = [ShapeExpr((lambda batch: batch) if size == -1 else size) for size in shape]
            described.append(TensorDesc(exprs, dtype))
            described[-1]._shape = None if profile is None else Shape(shape, profile)
        return described


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
