"""TensorRT plugins of our operations: whether one can be used, the file that asks for it, and which way is faster.

A registered plugin takes the place of the ONNX local function of the same name. Only plain TensorRT has plugins:
registering one with TensorRT-RTX ends the process.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import types
from collections.abc import Callable, Mapping
from statistics import median
from typing import TYPE_CHECKING, Any

import onnx
from onnx import helper

from mlpdeploy import kernels
from mlpdeploy.engine.backends import _nvidia
from mlpdeploy.engine.backends._base import one_line
from mlpdeploy.engine.functions import FORMS, SEGMENTS
from mlpdeploy.errors import BuildError, MachineLacks
from mlpdeploy.graph.ops import DOMAIN

if TYPE_CHECKING:
    from mlpdeploy.engine.backend import BuildRequest
    from mlpdeploy.engine.emit import Emitted
    from mlpdeploy.engine.parsed import ParsedNetwork

    Made = tuple[bytes, ParsedNetwork]

BODY, PLUGIN = "body", "plugin"
ROUNDS, WARMUP = 30, 5


def build(
    trt: Any, emitted: Emitted, request: BuildRequest, make: Callable[[onnx.ModelProto], Made]
) -> tuple[Made, dict[str, Any]]:
    """Build with the plugin, with the functions' bodies, or both ways to keep the faster, as the request says.

    `make(model)` builds one way. Returns what it made, and the facts: whether the plugin is used, why not where it was
    refused, and the milliseconds of both ways at the optimal batch where both were built.
    """
    ways: dict[str, Made] = {}
    reason = "--plugin off" if request.plugin == "off" else refusal(trt, emitted.model)
    if reason is None:
        try:
            register()
            ways[PLUGIN] = make(with_plugin(emitted.model, request.precision == "tf32"))
        except BuildError as error:
            reason = one_line(error)
    if request.plugin == "on" and reason is not None:
        raise BuildError(f"the engine cannot carry the plugin: {reason}")
    taken: dict[str, float] = {}
    if request.plugin != "on":
        ways[BODY] = make(emitted.model)
    if len(ways) > 1:
        inputs = {spec.name: spec.example(request.batch.opt) for spec in emitted.typed.inputs}
        taken = milliseconds({way: plan for way, (plan, _) in ways.items()}, inputs)
    way = min(taken, key=lambda name: taken[name]) if taken else next(iter(ways))
    return ways[way], {"used": way == PLUGIN, "reason": reason, "milliseconds": taken}


def refusal(trt: Any, model: onnx.ModelProto) -> str | None:
    """None where the plugin can be used for `model` with this TensorRT, else one line: why not."""
    if trt.__name__ != "tensorrt":
        return "TensorRT-RTX has no plugins"
    if not _calls(model):
        return "the network has no operation that has a plugin"
    if importlib.util.find_spec("triton") is None:
        return "the plugin's kernel is compiled by Triton, which is not installed; pip install triton"
    if importlib.util.find_spec("tensorrt.plugin") is None:
        return f"TensorRT {trt.__version__} has no module tensorrt.plugin"
    if not hasattr(importlib.import_module("tensorrt.plugin"), "aot_impl"):
        return f"TensorRT {trt.__version__} has no plugins that are compiled ahead of time"
    gpu = _nvidia.probe()
    oldest = kernels.load(f"{SEGMENTS}.problem").OLDEST
    if isinstance(gpu, str):
        return gpu
    if _sm(gpu) < oldest:
        return f"the plugin's kernel needs compute capability {oldest / 10}, this GPU is {gpu.capability}"
    return None


def with_plugin(model: onnx.ModelProto, tf32: bool) -> onnx.ModelProto:
    """The model whose segment-grouped projections are calls of the plugin.

    The local function goes, so that a plugin that cannot be found is an error and not another engine.
    """
    plugin = kernels.load(f"{SEGMENTS}.plugin")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    calls = _calls(result)
    names = {node.op_type for node in calls}
    for node in calls:
        form = FORMS[node.op_type]
        segments, size = form.factors(next(attribute.ints for attribute in node.attribute if attribute.name == "split"))
        node.op_type = plugin.name(form.operands)
        del node.attribute[:]
        chosen = {"plugin_namespace": plugin.NAMESPACE, "plugin_version": plugin.VERSION}
        for name, value in {**chosen, **plugin.attributes(segments, size, tf32, form.gelu)}.items():
            node.attribute.append(helper.make_attribute(name, value))
    kept = [function for function in result.functions if function.domain != DOMAIN or function.name not in names]
    del result.functions[:]
    result.functions.extend(kept)
    return result


def is_called(model: onnx.ModelProto) -> bool:
    """Whether the model calls a plugin."""
    return any(attribute.name == "plugin_namespace" for node in model.graph.node for attribute in node.attribute)


@functools.cache
def register() -> None:
    """Register the plugin with TensorRT, once a process, for this machine's GPU. Raises MachineLacks without one."""
    gpu = _nvidia.probe()
    if isinstance(gpu, str):
        raise MachineLacks(gpu)
    trtp: types.ModuleType = importlib.import_module("tensorrt.plugin")
    kernels.load(f"{SEGMENTS}.plugin").register(trtp, _sm(gpu), gpu.driver)


def network(trt: Any, model: bytes, strongly_typed: bool) -> tuple[Any, Any, Any]:
    """Builder, network and parser of a model that calls plugins, which are to be compiled into the engine."""
    from polygraphy.backend.trt import util

    logger, flags = util.get_trt_logger(), trt.NetworkDefinitionCreationFlag
    wanted = ("PREFER_AOT_PYTHON_PLUGINS", *(["STRONGLY_TYPED"] if strongly_typed else []))
    builder = trt.Builder(logger)
    made = builder.create_network(flags=sum(1 << int(getattr(flags, one)) for one in wanted if hasattr(flags, one)))
    parser = trt.OnnxParser(made, logger)
    util.check_onnx_parser_errors(parser, parser.parse(model))
    return builder, made, parser


def milliseconds(plans: Mapping[str, bytes], inputs: Mapping[str, Any]) -> dict[str, float]:
    """Median time of each engine on this GPU, copies of inputs and outputs included; the engines take turns."""
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    taken: dict[str, list[float]] = {name: [] for name in plans}
    with contextlib.ExitStack() as stack:
        runners = {name: stack.enter_context(TrtRunner(EngineFromBytes(plan))) for name, plan in plans.items()}
        for turn in range(WARMUP + ROUNDS):
            for name, runner in runners.items():
                runner.infer(dict(inputs), check_inputs=False)
                if turn >= WARMUP:
                    taken[name].append(1e3 * runner.last_inference_time())
    return {name: median(times) for name, times in taken.items()}


def _calls(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.domain == DOMAIN and node.op_type in FORMS]


def _sm(gpu: _nvidia.Gpu) -> int:
    return int(gpu.capability.removeprefix("sm"))
