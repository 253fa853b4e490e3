"""The TensorRT plugin: `mlpdeploy::segment_grouped_projection` with the kernel compiled into the engine.

A Python plugin that is compiled ahead of time: while it builds an engine, TensorRT asks for PTX, and for the launch as
expressions of the input's dimensions, and keeps both in the plan. The engine then needs neither Python nor a library.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from .ahead import Compiled, compile_kernel
from .problem import Config, Problem, candidates

NAMESPACE, NAME, VERSION = "mlpdeploy", "segment_grouped_projection", "1"
ID = f"{NAMESPACE}::{NAME}"

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


def attributes(segments: int, size: int, tf32: bool) -> dict[str, list[int]]:
    """The attributes of a node that is this plugin: K and T, as in the ONNX function, and how FP32 is multiplied."""
    return {"split": [0, 0, segments, size], "tf32": [int(tf32)]}


def problem(shape: tuple[int, ...], split: Any, dtype: str, tf32: Any, largest: int) -> Problem:
    """The problem of x and a weight as the ONNX functions have them, for batches up to `largest`.

    (batch, P, Q, S) comes with a weight (P*S, K*T), and (batch, P, Q, S, O) with one of (K*T, P*S).
    """
    _, p, q, s, *trailing = shape
    o = int(trailing[0]) if trailing else 1
    precision = "tf32" if dtype == "FLOAT" and tf32[0] else PRECISIONS[dtype]
    sizes = (int(p), int(q), int(s), o, int(split[2]), int(split[3]))
    found = Problem(*sizes, precision, columns_first=not trailing)
    return found.for_batch(largest)


def tactics(problem: Problem, sm: int) -> tuple[Config, ...]:
    """The configurations that TensorRT chooses from; tactic n is the n-th, counted from 1."""
    return candidates(problem, sm, SHARED)[:TACTICS]


def register(trtp: Any, sm: int, cuda: str | None = None) -> None:
    """Register the plugin with `tensorrt.plugin` (`trtp`), compiled for compute capability `sm`.

    A process can do this once. Never with TensorRT-RTX, which has no plugins and ends the process. See `compile_kernel`
    for `cuda`. Raises ValueError where the GPU is too old for the kernel.
    """
    # TensorRT reads these annotations as values, which postponed evaluation would leave as strings.
    numbers = npt.NDArray[np.int32]

    def describe(x: Any, weight: Any, split: Any, tf32: Any) -> Any:
        batch, _, q, _, *trailing = x.shape_expr
        return trtp.from_shape_expr((batch, int(split[2]), q, int(split[3]), *trailing), x.dtype)

    def autotune(x: Any, weight: Any, split: Any, tf32: Any, outputs: Any) -> Any:
        kind = AUTOTUNED[x.dtype.name]
        offered = range(1, 1 + len(tactics(_problem(x, split, tf32), sm)))
        return [trtp.AutoTuneCombination(f"{kind}, {kind}, {kind}", "LINEAR", list(offered))]

    def compiled(x: Any, weight: Any, split: Any, tf32: Any, outputs: Any, tactic: Any) -> Any:
        found = _problem(x, split, tf32)
        # TensorRT asks with tactic 0 where it does not tune.
        config = tactics(found, sm)[max(tactic, 1) - 1]
        launch = Launch(_compiled(found, config, sm, cuda), found, config)
        batch = x.shape_expr[0]
        parameters = trtp.KernelLaunchParams()
        parameters.grid_x = launch.tiles(batch)
        parameters.block_x = launch.compiled.threads
        parameters.shared_mem = launch.compiled.shared
        arguments = trtp.SymIntExprs(1)
        arguments[0] = trtp.SymInt32(batch)
        return launch.compiled.entry, launch.compiled.ptx, parameters, arguments

    tensor, text = trtp.TensorDesc, str | bytes
    inputs = {"x": tensor, "weight": tensor, "split": numbers, "tf32": numbers}
    outputs = types.GenericAlias(tuple, (tensor,))
    kernel = types.GenericAlias(tuple, (text, text, trtp.KernelLaunchParams, trtp.SymExprs))
    combinations = types.GenericAlias(list, (trtp.AutoTuneCombination,))
    describe.__annotations__ = {**inputs, "return": tensor}
    autotune.__annotations__ = {**inputs, "outputs": outputs, "return": combinations}
    compiled.__annotations__ = {**inputs, "outputs": outputs, "tactic": int, "return": kernel}
    trtp.register(ID)(describe)
    trtp.autotune(ID)(autotune)
    trtp.aot_impl(ID)(compiled)


_compiled = cache(compile_kernel)


def _problem(x: Any, split: Any, tf32: Any) -> Problem:
    """The problem of a described input: its batch may be -1, and then its profile says how large it becomes."""
    shape = tuple(x.shape)
    largest = x.shape.max[0] if x.shape.is_dynamic else shape[0]
    return problem(shape, split, x.dtype.name, tf32, int(largest))
