"""Whole numbers of 8, 16 and 32 bits: engines take them as they take all, in 64, where nothing wraps around.

`x - 128` of bytes is never below 0 in PyTorch, and in 64 bits it is. A network that does so before it makes its numbers
real ones, or wider ones, is none that an engine with 64-bit inputs can compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from mlpdeploy.errors import NetworkError

NARROW = {torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32}
SHORT = 2
"""Bytes of a number of which every value that there is may come; longer ones come from the example alone."""


def require_no_wrapping(network: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise NetworkError where a network computes something else with narrow inputs than with the same in 64 bits.

    Tried on the rows of `arrays`, one array for each input, and on rows of the smallest and the largest number of each
    short dtype. What the network raises by itself is not looked at here.
    """
    narrow = [array for array in arrays.values() if array.dtype.kind in "iu" and array.dtype.itemsize < 8]
    short = any(array.dtype.itemsize <= SHORT for array in narrow)
    ends = [[_end(array, high) for array in arrays.values()] for high in (False, True)] if short else []
    for rows in [list(arrays.values()), *ends] if narrow else []:
        inputs = [torch.from_numpy(np.array(array)) for array in rows]
        with suppress(Exception), torch.no_grad(), (watching := _Watching(inputs)):
            network(*inputs)
        if watching.wrapped is not None:
            operation, dtype = watching.wrapped
            raise NetworkError(
                f"{type(network).__name__} computes {operation} in {dtype}, whose numbers wrap around; an engine takes "
                "whole numbers in 64 bits: make them real ones first (x.float()), or wider ones (x.long())"
            )


def _end(array: np.ndarray, high: bool) -> np.ndarray:
    """An array of its dtype's largest number, or its smallest; as it is where it is not short."""
    if array.dtype.kind not in "iu" or array.dtype.itemsize > SHORT:
        return array
    limits = np.iinfo(array.dtype)
    return np.full_like(array, limits.max if high else limits.min)


class _Watching(TorchDispatchMode):
    """Computes whatever comes from narrow inputs in 64 bits too, and keeps the first operation that differs."""

    def __init__(self, inputs: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.wide = WeakIdKeyDictionary()
        self.wrapped: tuple[str, str] | None = None
        for tensor in inputs:
            if tensor.dtype in NARROW:
                self.wide[tensor] = tensor.to(torch.int64)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        leaves = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        if self.wrapped is None and any(one in self.wide for one in leaves) and not self._is_cast(func, kwargs):
            wide = func(*pytree.tree_map(self._widened, args), **pytree.tree_map(self._widened, kwargs))
            self._compare(func, found, wide)
        return found

    def _is_cast(self, func: Any, kwargs: Mapping[str, Any]) -> bool:
        """Whether the network itself says in which dtype its numbers go on: then it says so to the engine too."""
        return func is torch.ops.aten.view.dtype or kwargs.get("dtype") is not None

    def _widened(self, value: Any) -> Any:
        return self.wide.get(value, value) if isinstance(value, torch.Tensor) else value

    def _compare(self, func: Any, found: Any, wide: Any) -> None:
        for one, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(wide), strict=True):
            if not isinstance(one, torch.Tensor) or one.dtype not in NARROW:
                continue
            if not torch.equal(one.to(torch.int64), other.to(torch.int64)):
                name = str(func.overloadpacket).rpartition(".")[2]
                self.wrapped = name, str(one.dtype).removeprefix("torch.")
                return
            self.wide[one] = other.to(torch.int64)
