"""The TensorRT plugin: `mlpdeploy::segment_grouped_projection` with the kernel compiled into the engine.

Python plugins that are compiled ahead of time: while it builds an engine, TensorRT asks for PTX, and for the launch as
expressions of the input's dimensions, and keeps both in the plan. The engine then needs neither Python nor a library.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..common.ahead import Compiled
from ..common.configurations import Config, leading
from .ahead import compile_kernel
from .problem import Problem

NAMESPACE, NAME, VERSION = "mlpdeploy", "segment_grouped_projection", "1"
SHARED = 47 << 10
"""Bytes of shared memory for the operands: a launch may ask for 48 KiB, barriers included, without further setting."""

TACTICS = 10
"""Configurations that TensorRT measures, each of another tile or number of warps; each is compiled."""

PRECISIONS = {"HALF": "fp16", "BF16": "bf16", "FLOAT": "fp32"}
AUTOTUNED = {"HALF": "FP16", "BF16": "BF16", "FLOAT": "FP32"}
"""TensorRT's dtypes by name: as a precision of ours, and as `AutoTuneCombination` spells them."""


@dataclass(frozen=True)
class Launch:
    """A compiled tactic and how many blocks it has: `tiles(batch)` takes a number or a symbolic expression."""

    compiled: Compiled
    problem: Problem
    config: Config

    def tiles(self, batch: Any) -> Any:
        """Blocks of the grid, symbolic where `batch` is."""
        return self.problem.tiles(self.config, batch)


def attributes(segments: int, size: int, tf32: bool) -> dict[str, list[int]]:
    """The attributes of a node that is the plugin: K and T, as in the ONNX function, and how FP32 is multiplied."""
    return {"split": [0, 0, segments, size], "tf32": [int(tf32)]}


def problem(shape: Sequence[int], split: Any, dtype: str, tf32: Any, largest: int) -> Problem:
    """The problem of x and a weight as the ONNX functions have them, for batches up to `largest`.

    (batch, P, Q, S) comes with a weight (P*S, K*T), and (batch, P, Q, S, O) with one of (K*T, P*S).
    """
    _, p, q, s, *trailing = shape
    o = int(trailing[0]) if trailing else 1
    precision = "tf32" if dtype == "FLOAT" and tf32[0] else PRECISIONS[dtype]
    sizes = (int(p), int(q), int(s), o, int(split[2]), int(split[3]))
    return Problem(*sizes, precision, columns_first=not trailing).for_batch(largest)


def tactics(problem: Problem, sm: int) -> tuple[Config, ...]:
    """The configurations that TensorRT chooses from; tactic n is the n-th, counted from 1."""
    return tuple(leading(problem.candidates(sm, SHARED))[:TACTICS])


def register(trtp: Any, sm: int, cuda: str | None = None) -> None:
    """Register the plugin with `tensorrt.plugin` (`trtp`), compiled for compute capability `sm`.

    A process can do this once. Never with TensorRT-RTX, which has no plugins and ends the process. See `compile_kernel`
    for `cuda`. Raises ValueError where the GPU is too old for the kernel.
    """

    def describe(inputs: Mapping[str, Any]) -> Any:
        x, split = inputs["x"], inputs["split"]
        batch, _, q, _, *trailing = x.shape_expr
        return trtp.from_shape_expr((batch, int(split[2]), q, int(split[3]), *trailing), x.dtype)

    def autotune(inputs: Mapping[str, Any]) -> Any:
        kinds = ", ".join([AUTOTUNED[inputs["x"].dtype.name]] * 3)
        offered = range(1, 1 + len(tactics(_problem(inputs), sm)))
        return [trtp.AutoTuneCombination(kinds, "LINEAR", list(offered))]

    def compiled(inputs: Mapping[str, Any]) -> Any:
        found = _problem(inputs)
        # TensorRT asks with tactic 0 where it does not tune.
        config = tactics(found, sm)[max(inputs["tactic"], 1) - 1]
        launch = Launch(_compiled(found, config, sm, cuda), found, config)
        return launch.compiled.entry, launch.compiled.ptx, *launched(trtp, launch, inputs["x"].shape_expr[0])

    tensor, text, numbers = trtp.TensorDesc, str | bytes, npt.NDArray[np.int32]
    taken = {**dict.fromkeys(("x", "weight"), tensor), **dict.fromkeys(("split", "tf32"), numbers)}
    outputs = {"outputs": types.GenericAlias(tuple, (tensor,))}
    kernel = types.GenericAlias(tuple, (text, text, trtp.KernelLaunchParams, trtp.SymExprs))
    identity = f"{NAMESPACE}::{NAME}"
    trtp.register(identity)(_signed(describe, taken, tensor))
    trtp.autotune(identity)(_signed(autotune, taken | outputs, types.GenericAlias(list, (trtp.AutoTuneCombination,))))
    trtp.aot_impl(identity)(_signed(compiled, {**taken, **outputs, "tactic": int}, kernel))


def launched(trtp: Any, launch: Launch, batch: Any) -> tuple[Any, Any]:
    """How TensorRT launches a kernel for a batch, which is an expression, and what it passes beside the tensors."""
    parameters = trtp.KernelLaunchParams()
    parameters.grid_x = launch.tiles(batch)
    parameters.block_x = launch.compiled.threads
    parameters.shared_mem = launch.compiled.shared
    arguments = trtp.SymIntExprs(1)
    arguments[0] = trtp.SymInt32(batch)
    return parameters, arguments


_compiled = cache(compile_kernel)


def _signed(
    function: Callable[[Mapping[str, Any]], Any], taken: Mapping[str, Any], returned: Any
) -> Callable[..., Any]:
    """A function of named inputs with the signature that TensorRT reads them from: these parameters, annotated."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(one, kind, annotation=annotation) for one, annotation in taken.items()]
    signature = inspect.Signature(parameters, return_annotation=returned)

    def signed(*given: Any, **named: Any) -> Any:
        return function(signature.bind(*given, **named).arguments)

    signed.__signature__ = signature  # type: ignore[attr-defined]
    return signed


def _problem(inputs: Mapping[str, Any]) -> Problem:
    """The problem of described inputs: the batch may be -1, and then its profile says how large it becomes."""
    x = inputs["x"]
    shape = tuple(x.shape)
    largest = x.shape.max[0] if x.shape.is_dynamic else shape[0]
    return problem(shape, inputs["split"], x.dtype.name, inputs["tf32"], int(largest))
