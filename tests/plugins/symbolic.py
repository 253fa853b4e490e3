"""Symbolic numbers, shapes and tensors, as `tensorrt.plugin` gives them to a plugin: part of `stand_in`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any


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
