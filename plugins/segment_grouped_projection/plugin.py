"""The TensorRT plugins: `mlpdeploy::segment_grouped_projection` with the kernel compiled into the engine.

Python plugins that are compiled ahead of time: while it builds an engine, TensorRT asks for PTX, and for the launch as
expressions of the input's dimensions, and keeps both in the plan. The engine then needs neither Python nor a library.
There is one plugin for each set of operands that an epilogue can have, since a plugin's inputs are fixed.
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from .ahead import Compiled, compile_kernel
from .problem import Config, Problem, candidates

NAMESPACE, NAME, VERSION = "mlpdeploy", "segment_grouped_projection", "1"
OPERANDS = (
    (), ("bias",), ("accumulate",), ("scale", "accumulate"), ("bias", "accumulate"), ("bias", "scale", "accumulate"),
)  # fmt: skip
"""The tensors that an epilogue can read, in the order in which a plugin takes them."""

SHARED = 47 << 10
"""Bytes of shared memory for the operands: a launch may ask for 48 KiB, barriers included, without further setting."""

TACTICS = 8
"""Configurations that TensorRT measures; each is compiled."""

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


def name(operands: Sequence[str]) -> str:
    """The name of the plugin whose epilogue reads these operands."""
    return "_".join([NAME, *operands])


def attributes(segments: int, size: int, tf32: bool, gelu: bool = False) -> dict[str, list[int]]:
    """The attributes of a node that is a plugin: K and T, as in the ONNX function, how FP32 is multiplied, and GELU."""
    return {"split": [0, 0, segments, size], "tf32": [int(tf32)], "gelu": [int(gelu)]}


def problem(
    shape: Sequence[int],
    split: Any,
    dtype: str,
    tf32: Any,
    largest: int,
    *,
    gelu: Any = (0,),
    bias: bool = False,
    scale: bool = False,
    accumulate: Sequence[int] | None = None,
) -> Problem:
    """The problem of x and a weight as the ONNX functions have them, for batches up to `largest`.

    (batch, P, Q, S) comes with a weight (P*S, K*T), and (batch, P, Q, S, O) with one of (K*T, P*S). `accumulate`: the
    shape of what the result is added to, where it is: (images, ..., channels), of which the images may be unknown.
    """
    _, p, q, s, *trailing = shape
    o = int(trailing[0]) if trailing else 1
    precision = "tf32" if dtype == "FLOAT" and tf32[0] else PRECISIONS[dtype]
    sizes = (int(p), int(q), int(s), o, int(split[2]), int(split[3]))
    found = Problem(
        *sizes, precision, columns_first=not trailing, bias=bias, gelu=bool(gelu[0]), accumulate=accumulate is not None,
        channels=int(accumulate[-1]) if scale and accumulate is not None else 0,
    )  # fmt: skip
    if found.channels and accumulate is not None:
        found = replace(found, share=math.prod(map(int, accumulate[1:])) // (found.rows * found.columns))
    return found.for_batch(largest)


def tactics(problem: Problem, sm: int) -> tuple[Config, ...]:
    """The configurations that TensorRT chooses from; tactic n is the n-th, counted from 1."""
    return candidates(problem, sm, SHARED)[:TACTICS]


def register(trtp: Any, sm: int, cuda: str | None = None) -> None:
    """Register the plugins with `tensorrt.plugin` (`trtp`), compiled for compute capability `sm`.

    A process can do this once. Never with TensorRT-RTX, which has no plugins and ends the process. See `compile_kernel`
    for `cuda`. Raises ValueError where the GPU is too old for the kernel.
    """
    for operands in OPERANDS:
        _register(trtp, operands, sm, cuda)


def _register(trtp: Any, operands: Sequence[str], sm: int, cuda: str | None) -> None:
    """Register one plugin: its functions take x, weight, the operands, then the attributes."""
    tensors = ("x", "weight", *operands)

    def describe(inputs: Mapping[str, Any]) -> Any:
        x, split = inputs["x"], inputs["split"]
        batch, _, q, _, *trailing = x.shape_expr
        shape = (batch, int(split[2]), q, int(split[3]), *trailing)
        return trtp.from_shape_expr(inputs["accumulate"].shape_expr if "accumulate" in operands else shape, x.dtype)

    def autotune(inputs: Mapping[str, Any]) -> Any:
        kinds = ", ".join([AUTOTUNED[inputs["x"].dtype.name]] * (len(tensors) + 1))
        offered = range(1, 1 + len(tactics(_problem(inputs), sm)))
        return [trtp.AutoTuneCombination(kinds, "LINEAR", list(offered))]

    def compiled(inputs: Mapping[str, Any]) -> Any:
        found = _problem(inputs)
        # TensorRT asks with tactic 0 where it does not tune.
        config = tactics(found, sm)[max(inputs["tactic"], 1) - 1]
        launch = Launch(_compiled(found, config, sm, cuda), found, config)
        batch = inputs["x"].shape_expr[0]
        parameters = trtp.KernelLaunchParams()
        parameters.grid_x = launch.tiles(batch)
        parameters.block_x = launch.compiled.threads
        parameters.shared_mem = launch.compiled.shared
        arguments = trtp.SymIntExprs(1)
        arguments[0] = trtp.SymInt32(batch)
        return launch.compiled.entry, launch.compiled.ptx, parameters, arguments

    tensor, text, numbers = trtp.TensorDesc, str | bytes, npt.NDArray[np.int32]
    taken = {**dict.fromkeys(tensors, tensor), **dict.fromkeys(("split", "tf32", "gelu"), numbers)}
    outputs = {"outputs": types.GenericAlias(tuple, (tensor,))}
    kernel = types.GenericAlias(tuple, (text, text, trtp.KernelLaunchParams, trtp.SymExprs))
    identity = f"{NAMESPACE}::{name(operands)}"
    trtp.register(identity)(_signed(describe, taken, tensor))
    trtp.autotune(identity)(_signed(autotune, taken | outputs, types.GenericAlias(list, (trtp.AutoTuneCombination,))))
    trtp.aot_impl(identity)(_signed(compiled, {**taken, **outputs, "tactic": int}, kernel))


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
    x, accumulate = inputs["x"], inputs.get("accumulate")
    shape = tuple(x.shape)
    largest = x.shape.max[0] if x.shape.is_dynamic else shape[0]
    return problem(
        shape, inputs["split"], x.dtype.name, inputs["tf32"], int(largest), gelu=inputs["gelu"],
        bias="bias" in inputs, scale="scale" in inputs,
        accumulate=None if accumulate is None else tuple(accumulate.shape),
    )  # fmt: skip
