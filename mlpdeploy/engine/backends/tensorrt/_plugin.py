"""TensorRT plugins of our operations: whether one can be used, the file that asks for it, and which way is faster.

A registered plugin takes the place of the ONNX local function of the same name. Only plain TensorRT has plugins:
registering one with TensorRT-RTX ends the process.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import onnx
from onnx import helper

from mlpdeploy import kernels
from mlpdeploy.engine import cuda_graphs, nvidia
from mlpdeploy.engine.backends.tensorrt import _contexts, _polygraphy
from mlpdeploy.engine.base import one_line
from mlpdeploy.engine.features import STRIPPED
from mlpdeploy.engine.onnx.functions import BODIES, SEGMENTS
from mlpdeploy.engine.signature import Port
from mlpdeploy.errors import BuildError, MachineLacks
from mlpdeploy.graph.custom_ops import DOMAIN

if TYPE_CHECKING:
    from mlpdeploy.engine.backend import BuildRequest
    from mlpdeploy.engine.backends.tensorrt.parsed import ParsedNetwork
    from mlpdeploy.engine.batch import Batch
    from mlpdeploy.engine.onnx.emit import Emitted
    from mlpdeploy.graph.precision.typed import Typed

    Made = tuple[bytes, ParsedNetwork]

BODY, PLUGIN = "body", "plugin"


def build(
    trt: Any, emitted: Emitted, request: BuildRequest, make: Callable[[onnx.ModelProto], Made]
) -> tuple[Made, dict[str, Any]]:
    """Build with the plugin, with the functions' bodies, or both ways to keep the faster, as the request says.

    `make(model)` builds one way. Returns what it made, and the facts: whether the plugin is used, why not where it was
    refused or nothing could tell which way is faster, and the milliseconds of both ways at each batch size where both
    were built.
    """
    ways: dict[str, Made] = {}
    reason = "--plugin off" if request.plugin == "off" else refusal(trt, emitted.model)
    if STRIPPED in request.features:
        reason = reason or "a stripped engine takes its weights from the file, which calls no plugin"
    if reason is None:
        try:
            _registered()
            ways[PLUGIN] = make(with_plugin(emitted.model, request.precision == "tf32"))
        except BuildError as error:
            reason = one_line(error)
    if request.plugin == "on" and reason is not None:
        raise BuildError(f"the engine cannot carry the plugin: {reason}")
    if request.plugin != "on":
        ways[BODY] = make(emitted.model)
    way, taken = next(iter(ways)), dict[int, dict[str, float]]()
    if len(ways) > 1:
        timed = milliseconds(trt, {way: plan for way, (plan, _) in ways.items()}, emitted.typed, request.batch)
        if isinstance(timed, str):
            way, reason = BODY, timed
        else:
            way, taken = fastest(timed), timed
    times = {f"{name} at batch {size}": ms for size, row in taken.items() for name, ms in row.items()}
    return ways[way], {"used": way == PLUGIN, "reason": reason, "milliseconds": times}


def fastest(taken: Mapping[int, Mapping[str, float]]) -> str:
    """The way with the least geometric mean over the batch sizes."""
    return min(taken[min(taken)], key=lambda way: sum(math.log(row[way]) for row in taken.values()))


def refusal(trt: Any, model: onnx.ModelProto) -> str | None:
    """None where the plugin can be used for `model` with this TensorRT, else one line: why not."""
    if trt.__name__ != "tensorrt":
        return "TensorRT-RTX has no plugins"
    if not _calls(model):
        quantised = any(node.domain == DOMAIN and node.op_type in BODIES for node in model.graph.node)
        return "what has a plugin reads 8-bit codes" if quantised else "the network has no operation that has a plugin"
    if importlib.util.find_spec("triton") is None:
        return "the plugin's kernel is compiled by Triton, which is not installed; pip install triton"
    if importlib.util.find_spec("tensorrt.plugin") is None:
        return f"TensorRT {trt.__version__} has no module tensorrt.plugin"
    if not hasattr(importlib.import_module("tensorrt.plugin"), "aot_impl"):
        return f"TensorRT {trt.__version__} has no plugins that are compiled ahead of time"
    gpu = nvidia.probe()
    oldest = kernels.load("common.configurations").OLDEST
    if isinstance(gpu, str):
        return gpu
    if _sm(gpu) < oldest:
        return f"the plugin's kernel needs compute capability {oldest / 10}, this GPU is {gpu.capability}"
    return None


def with_plugin(model: onnx.ModelProto, tf32: bool) -> onnx.ModelProto:
    """The model whose segment-grouped projections are calls of the plugin, but for those of 8-bit codes.

    The local function goes, so that a plugin that cannot be found is an error and not another engine; where it is
    called still, it is called otherwise than the plugin.
    """
    plugin = kernels.load(f"{SEGMENTS}.plugin")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    calls = _calls(result)
    for node in calls:
        split = next(attribute.ints for attribute in node.attribute if attribute.name == "split")
        segments, size = BODIES[node.op_type].factors(split)
        node.op_type = plugin.NAME
        del node.attribute[:]
        chosen = {"plugin_namespace": plugin.NAMESPACE, "plugin_version": plugin.VERSION}
        for name, value in {**chosen, **plugin.attributes(segments, size, tf32)}.items():
            node.attribute.append(helper.make_attribute(name, value))
    _leave_functions(result)
    return result


def _leave_functions(model: onnx.ModelProto) -> None:
    """Only the functions that are called in a model, and not by names that plugins have too."""
    left = [node for node in model.graph.node if node.domain == DOMAIN and not _asks(node)]
    called = {node.op_type for node in left}
    kept = [function for function in model.functions if function.domain != DOMAIN or function.name in called]
    del model.functions[:]
    model.functions.extend(kept)
    for one in (*left, *model.functions):
        name = "op_type" if isinstance(one, onnx.NodeProto) else "name"
        if one.domain == DOMAIN and getattr(one, name) in BODIES:
            setattr(one, name, f"{getattr(one, name)}_{BODY}")


def is_called(model: onnx.ModelProto) -> bool:
    """Whether the model calls a plugin."""
    return any(map(_asks, model.graph.node))


def _asks(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "plugin_namespace" for attribute in node.attribute)


@functools.cache
def register() -> None:
    """Register the plugin with TensorRT, once a process, for this machine's GPU. Raises MachineLacks without one."""
    gpu = nvidia.probe()
    if isinstance(gpu, str):
        raise MachineLacks(gpu)
    trtp: types.ModuleType = importlib.import_module("tensorrt.plugin")
    kernels.load(f"{SEGMENTS}.plugin").register(trtp, _sm(gpu), gpu.driver)


def milliseconds(trt: Any, plans: Mapping[str, bytes], typed: Typed, batch: Batch) -> dict[int, dict[str, float]] | str:
    """Median time of the computing of each engine at each batch size, on the GPU's own clock; the engines take turns.

    One line where nothing can tell: why not.
    """
    import torch
    from polygraphy.backend.trt import engine_from_bytes

    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} cannot use the GPU, whose clock would tell which way is faster"
    outputs = [Port(spec.name, spec.shape, str(spec.dtype).removeprefix("torch.")) for spec in typed.outputs]
    taken = {}
    with _polygraphy.collected_errors(trt) as errors:
        engines = {
            name: _contexts.Loaded(trt, engine_from_bytes(plan), errors, profiles=batch.profiles)
            for name, plan in plans.items()
        }
        for size in batch.sizes():
            inputs = {spec.name: spec.example(size).cuda() for spec in typed.inputs}
            bound = {name: _contexts.bind(one, outputs, inputs) for name, one in engines.items()}
            taken[size] = {name: 1e3 * seconds for name, seconds in cuda_graphs.seconds(bound).items()}
    return taken


def _registered() -> None:
    """Register the plugin; whatever TensorRT's own decorators or Triton raise becomes a BuildError."""
    try:
        register()
    except Exception as error:  # versions of TensorRT, Python and Triton that do not fit raise what they like
        raise BuildError(f"the plugin cannot be registered: {type(error).__name__}: {one_line(error)}") from error


def _calls(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The operations that a plugin can take over: not those of 8-bit codes, which it would multiply in FP16."""
    decoded = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    calls = (node for node in model.graph.node if node.domain == DOMAIN and node.op_type in BODIES)
    return [node for node in calls if not decoded & set(node.input)]


def _sm(gpu: nvidia.Gpu) -> int:
    return int(gpu.capability.removeprefix("sm"))
