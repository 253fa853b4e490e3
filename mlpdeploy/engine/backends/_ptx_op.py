"""Our kernel in Torch-TensorRT's engines, by `torch_tensorrt.kernels.ptx_op` (Torch-TensorRT 2.14).

An operation of that kind is one kernel: its PTX is given when it is registered, and TensorRT measures no tactics of it.
So each problem is an operation of its own, `mlpdeploy::segment_grouped_projection_<hash>`, compiled in the first
configuration that fits; its batch stays free. The engine holds the PTX, and needs neither Python nor Triton to run.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from mlpdeploy import kernels

if TYPE_CHECKING:
    from torch import Tensor

DOMAIN, SEGMENTS = "mlpdeploy", "segment_grouped_projection"
SCHEMA = "(Tensor x, Tensor weight) -> Tensor"


def carried(program: Any, tf32: bool, sm: int, cuda: str) -> dict[Any, Callable[..., Tensor]]:
    """Register an operation for each projection of an ExportedProgram; what each is decomposed into, by its target.

    Empty where there are none. `sm` is the compute capability, `cuda` the version that the driver has.
    """
    from mlpdeploy.graph import custom_ops

    wide: dict[Any, bool] = {}
    for node in program.graph.nodes:
        if node.target == custom_ops.SEGMENT_GROUPED_PROJECTION:
            x, weight, segments = node.args
            problem = _problem(x.meta["val"], weight.meta["val"], segments, tf32)
            wide[_alike(problem)] = wide.get(_alike(problem), False) or problem.wide
    names = {problem: _registered(replace(problem, wide=far), sm, cuda) for problem, far in wide.items()}

    def projection(x: Tensor, weight: Tensor, segments: int) -> Tensor:
        import torch

        name = names[_alike(_problem(x, weight, segments, tf32))]
        result: Tensor = getattr(getattr(torch.ops, DOMAIN), name).default(x, weight)
        return result

    return {custom_ops.SEGMENT_GROUPED_PROJECTION: projection} if names else {}


def is_ours(target: Any) -> bool:
    """Whether an operation of a graph is one that was registered here."""
    return re.fullmatch(rf"{DOMAIN}\.{SEGMENTS}_[0-9a-f]{{12}}\.default", str(target)) is not None


def _problem(x: Tensor, weight: Tensor, segments: int, tf32: bool) -> Any:
    return kernels.load(f"{SEGMENTS}.launch").describe(x, weight, segments, tf32=tf32)


def _alike(problem: Any) -> Any:
    """The problem whatever its addresses: how large a batch becomes is known before decomposition only."""
    return replace(problem, wide=False)


@cache
def _registered(problem: Any, sm: int, cuda: str) -> str:
    """The name of the operation that computes a problem, registered once a process."""
    from torch_tensorrt.kernels import ptx_op

    from mlpdeploy.graph import custom_ops

    plugin: Any = kernels.load(f"{SEGMENTS}.plugin")
    config = plugin.tactics(problem, sm)[0]
    launch = plugin.Launch(plugin.compile_kernel(problem, config, sm, cuda), problem, config)
    name = f"{SEGMENTS}_{hashlib.sha256(repr((problem, config, sm, cuda)).encode()).hexdigest()[:12]}"

    def shape(x: Tensor, weight: Tensor) -> Tensor:
        trailing = (problem.o,) if x.ndim == 5 else ()
        return x.new_empty((x.shape[0], problem.k, problem.q, problem.t, *trailing))

    def eager(x: Tensor, weight: Tensor) -> Tensor:
        return custom_ops.by_permuting(x, weight, problem.k)

    def ahead(inputs: Any, outputs: Any, tactic: int) -> tuple[Any, Any]:
        result: tuple[Any, Any] = plugin.launched(
            importlib.import_module("tensorrt.plugin"), launch, inputs[0].shape_expr[0]
        )
        return result

    ptx_op(
        f"{DOMAIN}::{name}",
        launch.compiled.ptx.encode(),
        launch.compiled.entry,
        shape,
        eager,
        ahead,
        supports_dynamic_shapes=True,
        schema=SCHEMA,
    )
    return name
