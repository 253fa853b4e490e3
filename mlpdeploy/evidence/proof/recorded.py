"""What a network does when it runs, operation by operation, and whether two runs of it agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from mlpdeploy.engine.runner import Arrays
from mlpdeploy.graph.tracing.place import Here, here
from mlpdeploy.graph.tracing.rows import fixed_batch
from mlpdeploy.graph.tracing.trace import TensorSpec

TENSOR = "tensor"
NOISE = 1000.0
"""Results that differ by less than so many units in the last place of their operands agree."""


@dataclass
class Recorded:
    """One call of an operator: where the user asked for it, and copies of its results.

    `scale` is the largest magnitude among its operands and results, `numbers` are its arguments that are no tensors.
    """

    name: str
    here: Here
    random: bool
    numbers: tuple[Any, ...]
    scale: float
    results: list[Tensor] = field(default_factory=list)

    @property
    def place(self) -> str:
        """`, in module 'a.b' (file.py, line 7)`."""
        return f", in{self.here}"


class Recorder(TorchDispatchMode):
    """Records every operation of a network that runs, `seen` in order."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.paths = {id(module): path for path, module in network.named_modules()}
        self.seen: list[Recorded] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        leaves = pytree.tree_leaves((args, kwargs or {}))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        numbers = tuple(leaf for leaf in leaves if isinstance(leaf, int | float))
        operation = Recorded(
            name_of(func), here(self.paths), is_random(func), numbers, max(map(_largest, tensors), default=0)
        )
        self.seen.append(operation)
        found = func(*args, **(kwargs or {}))
        operation.results = [leaf.clone() for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]
        operation.scale = max([operation.scale, *map(_largest, operation.results)])
        return found


def recorded(network: nn.Module, inputs: Sequence[TensorSpec], rows: Arrays) -> list[Recorded]:
    """The operations of one run in float32, up to where it raised an error if it did."""
    recorder = Recorder(network)
    given = tensors(inputs, rows)
    try:
        with recorder, torch.inference_mode():
            network(*given)
    except (Exception, SystemExit):  # whatever the user's code raises; what was asked for last is recorded
        pass
    return recorder.seen


def tensors(inputs: Sequence[TensorSpec], rows: Arrays) -> list[Tensor]:
    """The rows in float32, or as integers; of a network that takes a single batch size, as many as that."""
    kinds = [torch.float32 if spec.dtype.is_floating_point else spec.dtype for spec in inputs]
    count = len(next(iter(rows.values())))
    index = np.resize(np.arange(count), fixed_batch(inputs) or count)
    return [torch.tensor(rows[spec.name][index], dtype=kind) for spec, kind in zip(inputs, kinds, strict=True)]


def same(first: Recorded, second: Recorded) -> bool:
    """Whether two runs did the same here."""
    if first.name != second.name or len(first.results) != len(second.results):
        return False
    return all(near(a, b, first.scale) for a, b in zip(first.results, second.results, strict=True))


def is_part(batch: Recorded, single: Recorded, index: int, count: int) -> bool:
    """Whether a row alone got what it got as row `index` of `count`."""
    if batch.name != single.name or len(batch.results) != len(single.results):
        return False
    return all(_holds(a, b, index, count, batch.scale) for a, b in zip(batch.results, single.results, strict=True))


def _holds(batch: Tensor, single: Tensor, index: int, count: int, scale: float) -> bool:
    if batch.shape == single.shape:
        return near(batch, single, scale)
    if batch.dim() != single.dim():
        return False
    differ = [axis for axis in range(batch.dim()) if batch.shape[axis] != single.shape[axis]]
    if len(differ) != 1 or batch.shape[differ[0]] != count * single.shape[differ[0]]:
        return False
    (axis,) = differ
    size = single.shape[axis]
    # The batch may have been merged with other axes, on their inside, their outside or between them.
    merged = (outer for outer in range(1, size + 1) if size % outer == 0)
    return any(near(_row(batch, axis, outer, index, count), single, scale) for outer in merged)


def _row(batch: Tensor, axis: int, outer: int, index: int, count: int) -> Tensor:
    """Row `index` of `count`, where the batch lies behind `outer` numbers within an axis."""
    parts: Tensor = batch.unflatten(axis, (outer, count, -1))
    return parts.select(axis + 1, index).flatten(axis, axis + 1)


def near(a: Tensor, b: Tensor, scale: float) -> bool:
    """Whether two results of an operation on numbers of that `scale` differ by rounding at most."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not is_float(a):
        return torch.equal(a, b)
    allowed = NOISE * torch.finfo(a.dtype).eps * scale
    return torch.allclose(a, b, rtol=0, atol=allowed, equal_nan=True)


def is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def is_finite(value: Any) -> bool:
    """Whether a value is no tensor, or holds numbers only."""
    return not is_float(value) or bool(torch.isfinite(value).all())


def _largest(value: Tensor) -> float:
    """The largest finite magnitude."""
    if not is_float(value) or not value.numel():
        return 0.0
    return float(value.detach().nan_to_num(0.0, 0.0, 0.0).abs().max())


def is_random(func: Any) -> bool:
    """Whether an operator may draw random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())


def name_of(func: Any) -> str:
    """What people call an operator: `softmax` for `aten._softmax`, `tensor` for what makes one of Python's numbers."""
    if func is torch.ops.aten.lift_fresh.default:
        return TENSOR
    name: str = func.overloadpacket.__name__.strip("_").removeprefix("native_")
    for ending in ("_legit", "_no_training", "_functional"):
        name = name.removesuffix(ending)
    return name
