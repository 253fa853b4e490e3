"""What the rungs of the ladder run: each form of a network as one function from arrays to arrays, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
from torch import fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from mlpdeploy.engine.backends.onnxruntime import open_session
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.forms import round_results, widen_fp4
from mlpdeploy.engine.runner import Arrays
from mlpdeploy.graph.tracing.rows import chunks, fixed_batch
from mlpdeploy.graph.tracing.trace import TensorSpec

Outputs = dict[str, np.ndarray]
Run = Callable[[Arrays], Outputs]
SINGLE = Batch(1, 1, 1)
"""One row at a time."""


def in_batches(run: Run, arrays: Arrays, batch: Batch) -> Outputs:
    """`run` over many rows in batches of the optimal size; the last is filled up with its own rows."""
    parts = []
    for index, count in chunks(len(next(iter(arrays.values()))), batch.opt, batch.min):
        outputs = run({name: values[index] for name, values in arrays.items()})
        parts.append({name: values[:count] for name, values in outputs.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def module_run(
    module: Callable[..., object],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str],
    dtype: torch.dtype | None = None,
) -> Run:
    """A torch module, its inputs positional. Floating-point inputs take `dtype`, or their own where it is None.

    One that takes a single batch size runs over any number of rows, so many at a time.
    """

    def run(arrays: Arrays) -> Outputs:
        tensors = []
        for spec in inputs:
            wanted = dtype if dtype is not None and spec.dtype.is_floating_point else spec.dtype
            # A copy: a network may write into its input.
            tensors.append(torch.tensor(arrays[spec.name], dtype=wanted))
        with torch.inference_mode():
            leaves = [leaf for leaf in pytree.tree_leaves(module(*tensors)) if leaf is not None]
        # NumPy has no bfloat16, and float32 holds every one of its values.
        found = [leaf.float() if leaf.dtype == torch.bfloat16 else leaf for leaf in leaves]
        return dict(zip(outputs, (leaf.numpy() for leaf in found), strict=True))

    fixed = fixed_batch(inputs)
    return run if fixed is None else partial(in_batches, run, batch=Batch(fixed, fixed, fixed))


@contextmanager
def _conjugating() -> Iterator[None]:
    """Let what a dispatch mode calls see that a tensor is conjugated or negated only by a mark on it.

    In inference mode PyTorch 2.14 forgets that there, so that `hfft` gives the transform of the conjugate.
    """
    keys = (torch._C.DispatchKey.Conjugate, torch._C.DispatchKey.Negative)
    before = [torch._C._dispatch_tls_is_dispatch_key_excluded(key) for key in keys]
    for key in keys:
        torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
    try:
        yield
    finally:
        for key, was in zip(keys, before, strict=True):
            torch._C._dispatch_tls_set_dispatch_key_excluded(key, was)


class Widen(TorchDispatchMode):
    """Makes code that asks for float32 by name (`x.float()`, `dtype=torch.float32`), or that holds float32 numbers
    which no `double()` reaches, compute in float64."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = pytree.tree_map(_widened, (args, kwargs or {}))
        if not func._schema.is_mutable and not func.is_view:
            args, kwargs = pytree.tree_map(_wide, (args, kwargs))
        with _conjugating():
            return func(*args, **kwargs)


WIDER = {torch.float32: torch.float64, torch.complex64: torch.complex128}


def _widened(value: Any) -> Any:
    return WIDER.get(value, value) if isinstance(value, torch.dtype) else value


def _wide(value: Any) -> Any:
    """A tensor of numbers in single precision as one in double precision."""
    return value.to(WIDER[value.dtype]) if isinstance(value, torch.Tensor) and value.dtype in WIDER else value


def float64_run(module: Callable[..., object], inputs: Sequence[TensorSpec], outputs: Sequence[str]) -> Run:
    """A torch module whose weights are float64, run in float64 even where its code says otherwise."""
    run = module_run(module, inputs, outputs, torch.float64)

    def wide(arrays: Arrays) -> Outputs:
        with Widen():  # type: ignore[no-untyped-call]
            return run(arrays)

    return wide


class Shaken(TorchDispatchMode):
    """Puts every operation's result off at random, by up to `by` of itself: another rounding of the same network."""

    def __init__(self, by: float, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by, self.generator = by, torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with _conjugating():
            found = func(*args, **(kwargs or {}))
        computed = any(map(_is_float, pytree.tree_leaves((args, kwargs))))
        if not computed or func.is_view or func._schema.is_mutable:
            return found
        return pytree.tree_map(lambda leaf: self.off(leaf) if _is_float(leaf) else leaf, found)

    def off(self, values: torch.Tensor) -> torch.Tensor:
        """`values`, each off by its own share of itself."""
        return values * (1 + torch.empty_like(values).uniform_(-self.by, self.by, generator=self.generator))


def shaken_run(
    module: Callable[..., object], inputs: Sequence[TensorSpec], outputs: Sequence[str], by: float, seed: int = 0
) -> Run:
    """A torch module whose weights are float64, computed with errors of `by`, those of its inputs included."""
    run = float64_run(module, inputs, outputs)

    def shaken(arrays: Arrays) -> Outputs:
        mode = Shaken(by, seed)
        wide = {name: torch.from_numpy(np.asarray(values)) for name, values in arrays.items()}
        off = {name: mode.off(one.double()) if _is_float(one) else one for name, one in wide.items()}
        with mode:
            return run({name: values.numpy() for name, values in off.items()})

    return shaken


class Rounding(TorchDispatchMode):
    """Runs low-precision operations in float32 arithmetic and rounds each one's result once.

    That is what tensor cores do, which accumulate in float32, and overflow becomes infinity all the same. PyTorch's
    own FP16 kernels are several times slower on a CPU without FP16 arithmetic. Raises TypeError where an operation
    mixes dtypes: a cast is missing.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        dtypes = {leaf.dtype for leaf in pytree.tree_leaves((args, kwargs)) if _is_float(leaf) and leaf.dim()}
        low = dtypes & LOW
        if not low or func.overloadpacket in CONVERSIONS or func.is_view or func._schema.is_mutable:
            return func(*args, **kwargs)
        if len(dtypes) > 1:
            raise TypeError(f"{func} mixes {' and '.join(sorted(map(str, dtypes)))}: a cast is missing")
        (dtype,) = low
        args, kwargs = pytree.tree_map(lambda leaf: leaf.float() if _is_float(leaf) else leaf, (args, kwargs))
        return pytree.tree_map(
            lambda leaf: leaf.to(dtype) if _is_float(leaf) and leaf.dtype == torch.float32 else leaf,
            func(*args, **kwargs),
        )


LOW = frozenset({torch.float16, torch.bfloat16})
CONVERSIONS = (torch.ops.aten.to, torch.ops.aten._to_copy, torch.ops.aten.type_as)


def _is_float(value: Any) -> bool:
    """Whether a value is of real numbers; 8-bit codes are not, whatever their type is called."""
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.itemsize > 1


def typed_run(module: Callable[..., object], inputs: Sequence[TensorSpec], outputs: Sequence[str]) -> Run:
    """A graph whose every cast is a node, each operation rounding to the dtype of its operands."""
    run = module_run(module, inputs, outputs)

    def rounded(arrays: Arrays) -> Outputs:
        with Rounding():  # type: ignore[no-untyped-call]
            return run(arrays)

    return rounded


class _Kept(fx.Interpreter):
    """Runs a graph and keeps every tensor by its node's name."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.found[n.name] = result.clone()
        return result


def values(module: fx.GraphModule, inputs: Sequence[TensorSpec], outputs: Sequence[str], arrays: Arrays) -> Outputs:
    """What every operation of a graph gives by its name, each rounding to the dtype of its operands, inputs and outputs
    by theirs. Codes of 8 bits are left out, but not inputs that are bytes."""
    kept, names = _Kept(module), {spec.name for spec in inputs}

    def run(*given: torch.Tensor) -> Any:
        kept.found |= dict(zip((spec.name for spec in inputs), given, strict=True))
        with Rounding():  # type: ignore[no-untyped-call]
            return kept.run(*given)

    results = module_run(run, inputs, outputs)(arrays)
    wide = {name: one.float() if one.dtype == torch.bfloat16 else one for name, one in kept.found.items()}
    told = {name for name, one in wide.items() if one.itemsize > 1 or one.dtype == torch.bool or name in names}
    return {name: wide[name].numpy() for name in told} | results


def onnx_run(model: onnx.ModelProto, threads: int) -> Run:
    """The model in ONNX Runtime on the CPU, rounding after every operation as its dtypes say (see `round_results`).

    It has no FP4, and reads such codes in FP8, which has the same numbers (see `widen_fp4`). Needs a model below 2 GiB,
    the limit of its format.
    """
    wide = widen_fp4.rewrite(model)[0]
    session = open_session(round_results.rewrite(wide)[0].SerializeToString(), threads, exact=True)
    wanted = {value.name: _NUMPY[value.type] for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]

    def run(arrays: Arrays) -> Outputs:
        feeds = {name: np.ascontiguousarray(arrays[name], dtype=dtype) for name, dtype in wanted.items()}
        return dict(zip(names, session.run(names, feeds), strict=True))

    return run


_NUMPY: Mapping[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}

_ARRAY: Mapping[torch.dtype, Any] = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.float64: np.float64,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
}


def specified_run(engine: Run, inputs: Sequence[TensorSpec]) -> Run:
    """An engine, fed with contiguous arrays of exactly the dtypes that its inputs have."""

    def run(arrays: Arrays) -> Outputs:
        return engine({s.name: np.ascontiguousarray(arrays[s.name], dtype=_ARRAY[s.dtype]) for s in inputs})

    return run
