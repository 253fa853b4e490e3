"""A stand-in for TensorRT's Python plugin API, written from its public documentation.

It has what a plugin uses of `tensorrt.plugin`: `register`, `autotune` and `aot_impl` with the checks of signatures that
are documented, tensor descriptors with symbolic shapes, launch parameters. `Builder` plays TensorRT: it asks a plugin
for its output, its tactics and its kernel in the order, and with the arguments, that an engine build does. A symbolic
dimension is a function of the batch, so what a launch would be at any batch can be asked afterwards.
"""

from __future__ import annotations

import inspect
import operator
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

FLOAT, HALF, BF16 = "FLOAT", "HALF", "BF16"


class DataType(Enum):
    """`tensorrt.DataType`, as far as plugins of ours see it."""

    FLOAT = 0
    HALF = 1
    BF16 = 7


SPELLED = {"FP32": DataType.FLOAT, "FP16": DataType.HALF, "BF16": DataType.BF16}


class SymIntExpr:
    """An integer expression; `at(batch)` evaluates it. Supports + - * //, with an integer or an expression after it."""

    def __init__(self, value: int | SymIntExpr | Callable[[int], int]) -> None:
        if isinstance(value, bool) or not (isinstance(value, int | SymIntExpr) or callable(value)):
            raise TypeError(f"not an integer expression: {value!r}")
        self.at: Callable[[int], int] = (
            value.at if isinstance(value, SymIntExpr) else value if callable(value) else lambda batch: value  # type: ignore[assignment]
        )

    def _op(self, operation: Callable[[int, int], int], other: int | SymIntExpr) -> Any:
        right = SymIntExpr(other)
        return type(self)(lambda batch: operation(self.at(batch), right.at(batch)))

    def __add__(self, other: int | SymIntExpr) -> Any:
        return self._op(operator.add, other)

    def __sub__(self, other: int | SymIntExpr) -> Any:
        return self._op(operator.sub, other)

    def __mul__(self, other: int | SymIntExpr) -> Any:
        return self._op(operator.mul, other)

    def __floordiv__(self, other: int | SymIntExpr) -> Any:
        return self._op(operator.floordiv, other)


class SymInt32(SymIntExpr):
    """A 32-bit argument of a kernel."""


class ShapeExpr(SymInt32):
    """One dimension of a tensor."""


class SymExprs:
    """A sequence of expressions of a fixed length."""

    def __init__(self, length: int) -> None:
        self.items: list[Any] = [None] * length

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]

    def __setitem__(self, index: int, value: int | SymIntExpr) -> None:
        self.items[index] = value if isinstance(value, SymIntExpr) else SymIntExpr(value)


class SymIntExprs(SymExprs):
    """The scalar arguments of a kernel, which come after its inputs and before its outputs."""


class KernelLaunchParams:
    """Grid, block and shared memory, each an expression."""

    NAMES = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")

    def __init__(self) -> None:
        for name in self.NAMES:
            setattr(self, name, 0 if name == "shared_mem" else 1)

    def __setattr__(self, name: str, value: int | SymIntExpr) -> None:
        if name not in self.NAMES:
            raise AttributeError(f"KernelLaunchParams object has no attribute {name!r}")
        self.__dict__[name] = SymInt32(value)


class Shape(Sequence[int]):
    """Numbers of a shape, -1 where they are not fixed, and then the bounds of the profile."""

    def __init__(self, dims: tuple[int, ...], bounds: tuple[int, int, int] | None = None) -> None:
        self.dims, self.bounds = dims, bounds

    def __getitem__(self, index: Any) -> Any:
        return self.dims[index]

    def __len__(self) -> int:
        return len(self.dims)

    @property
    def is_dynamic(self) -> bool:
        return -1 in self.dims

    def _bound(self, which: int) -> tuple[int, ...]:
        if not self.is_dynamic or self.bounds is None:
            raise ValueError("bounds are only accessible where the shape is dynamic")
        return tuple(self.bounds[which] if dim == -1 else dim for dim in self.dims)

    @property
    def min(self) -> tuple[int, ...]:
        return self._bound(0)

    @property
    def opt(self) -> tuple[int, ...]:
        return self._bound(1)

    @property
    def max(self) -> tuple[int, ...]:
        return self._bound(2)


class TensorDesc:
    """A tensor without data; `shape` is known only while tactics and launches are asked for."""

    def __init__(self, shape_expr: Any = None, dtype: DataType | None = None) -> None:
        self.shape_expr, self.dtype = shape_expr, dtype
        self._shape: Shape | None = None

    @property
    def shape(self) -> Shape:
        if self._shape is None:
            raise ValueError("TensorDesc has no shape information available at this stage")
        return self._shape


class AutoTuneCombination:
    """Types of inputs and outputs, one text for each, their formats, and tactics, which are positive numbers."""

    def __init__(self, io_types: str, layouts: str = "LINEAR", tactics: Sequence[int] | None = None) -> None:
        self.types = [SPELLED[text.strip()] for text in io_types.split(",")]
        self.tactics = list(tactics or ())
        if layouts != "LINEAR" or any(type(tactic) is not int or tactic < 1 for tactic in self.tactics):
            raise ValueError(f"formats {layouts!r}, tactics {self.tactics}")


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
