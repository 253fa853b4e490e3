"""What our code asks of TensorRT, against the real package of one version (see `real_tensorrt`).

Run by `test_real_api.py` in a process of its own, whose TensorRT has no libraries.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mlpdeploy import kernels
from mlpdeploy.engine import nvidia
from mlpdeploy.engine.backend import BuildRequest
from mlpdeploy.engine.backends import tensorrt as backend
from mlpdeploy.engine.backends.tensorrt import _configuration, _contexts, _features, _parser, _polygraphy, _routes
from mlpdeploy.engine.backends.tensorrt._targets import version_numbers
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.features import FEATURES
from mlpdeploy.engine.on_gpu import OnGpu
from mlpdeploy.engine.runner import AS_CALLED
from mlpdeploy.engine.signature import Port, Signature
from mlpdeploy.errors import BuildError, MachineLacks
from mlpdeploy.evidence.latency import clocks
from tests.conftest import REPOSITORY
from tests.engine.backends import fake_tensorrt
from tests.engine.backends.real_tensorrt import Typed, called, module
from tests.engine.fake_gpu import gpu
from tests.engine.small_networks import emitted

__all__ = ["gpu"]

trt: Any = importlib.import_module("tensorrt")
OUTPUTS = [Port("y", (8,), "float32")]
SIGNATURE = Signature((Port("x", (8,), "float32"),), tuple(OUTPUTS), 1, 8)
OF_CPP = {
    "getNbIOTensors": "num_io_tensors", "getIOTensorName": "get_tensor_name", "getTensorIOMode": "get_tensor_mode",
    "getTensorDataType": "get_tensor_dtype", "enqueueV3": "execute_async_v3",
}  # fmt: skip
"""Methods that Python knows by another name than that of C++ in its own spelling."""
ROWS = {"x": np.ones((1, 8), np.float32)}


@pytest.fixture(autouse=True)
def bound() -> None:
    _polygraphy.bind("tensorrt")


def of(kind: str, **values: Any) -> Typed:
    return Typed(trt, getattr(trt, kind), **values)


def network() -> Typed:
    """A network of a layer of each kind that is looked into."""
    x = of("ITensor", name="x", shape=trt.Dims((-1, 8)), dtype=trt.DataType.HALF)
    kinds = (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.SHUFFLE, trt.LayerType.DEQUANTIZE)
    ends = {"num_inputs": 1, "num_outputs": 1, "get_input": lambda index: x, "get_output": lambda index: x}
    layers = [of("ILayer", name="l", type=kind, metadata="[ONNX Layer: n]", **ends) for kind in kinds]
    return of(
        "INetworkDefinition", num_layers=len(layers), num_inputs=1, get_input=lambda index: x,
        get_layer=layers.__getitem__, __getitem__=layers.__getitem__,
    )  # fmt: skip


def test_a_file_is_parsed_or_refused_in_words() -> None:
    model = emitted("fp16").model.SerializeToString()
    with _polygraphy.collected_errors(trt) as errors:
        typed = backend.strongly_typed_flag(trt)
        with pytest.raises(BuildError, match="TensorRT cannot parse the ONNX file"):  # each number is 1: an error
            _parser.network(module(trt), model, errors, typed=typed, ahead=True)
    flags = trt.NetworkDefinitionCreationFlag.__members__
    assert typed and {"STRONGLY_TYPED", "PREFER_AOT_PYTHON_PLUGINS"} <= flags.keys()


def test_a_network_is_read_back() -> None:
    found = backend._read_back(network(), emitted("fp16").model)
    assert found.total.layers == 3 and found.dtypes["MATRIX_MULTIPLY"] == {"HALF": 1} and found.total.transposes == 1


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_an_engine_is_configured_and_serialised(precision: str, tmp_path: Path) -> None:
    request, steps = BuildRequest(precision, Batch(1, 2, 4), level=2), list[Any]()
    monitor = _polygraphy.monitor(trt, lambda *step: steps.append(step))
    builder = of("Builder")
    (tmp_path / "cache").touch()
    parsed = (builder, network(), of("OnnxParser"))
    config = _configuration.config(trt, "tensorrt", request, parsed[1], None, monitor, str(tmp_path / "cache"))
    flags = list[Any]()
    made = config(builder, parsed[1])
    vars(made)["_values"] |= {"set_flag": flags.append, "clear_flag": lambda flag: flags.append(("off", flag))}
    _configuration.set_tf32(trt, made, precision == "tf32")
    assert flags == [trt.BuilderFlag.TF32 if precision == "tf32" else ("off", trt.BuilderFlag.TF32)]
    assert made.builder_optimization_level == 2 and made.progress_monitor is monitor
    with _polygraphy.collected_errors(trt) as errors:
        assert _configuration.serialised(parsed, config, None, monitor, errors) == b"serialised"


def test_every_feature_is_asked_for_and_prepared(tmp_path: Path) -> None:
    request = BuildRequest("fp16", Batch(1, 2, 4), features=tuple(FEATURES))
    builder, parsed = of("Builder"), network()
    flags = list[Any]()
    made = _configuration.config(trt, "tensorrt", request, parsed, None, None, None)(builder, parsed)
    vars(made)["_values"] |= {"set_flag": flags.append, "clear_flag": flags.append}
    engine = of("ICudaEngine", get_weight_streaming_automatic_budget=lambda: 5)
    with_names = {"Refitter": lambda *_: of("Refitter"), "OnnxParserRefitter": lambda *_: of("OnnxParserRefitter")}
    for name in with_names:  # both are there, and take an engine or a refitter, and a logger
        assert hasattr(trt, name)
    stand_in = SimpleNamespace(**with_names)
    _features.prepare(stand_in, engine, FEATURES, tmp_path / "model.onnx", [])
    assert engine.weight_streaming_budget_v2 == 5
    assert hasattr(trt.Runtime, "engine_host_code_allowed") and trt.HardwareCompatibilityLevel.AMPERE_PLUS is not None


def test_build_routes_are_asked_for_since_they_are_there() -> None:
    config = of("IBuilderConfig")
    if version_numbers(trt.__version__) < (11, 1):
        with pytest.raises(MachineLacks, match=r"has no build routes, which 11\.1 brought"):
            _routes.offered(module(trt))
        with pytest.raises(BuildError, match=r"has no build routes, which 11\.1 brought"):
            _routes.ask(trt, config, "-copy_ppg=off")
        return
    with pytest.raises(MachineLacks, match="offers no build routes"):  # each text is empty
        _routes.offered(module(trt))
    _routes.ask(trt, config, "-copy_ppg=off")
    assert config.build_route == "-copy_ppg=off"
    with pytest.raises(AttributeError):
        config.all_build_routes = ""


def loaded(context: Typed) -> _contexts.Loaded:
    """An engine of one layer whose context is this one."""
    told = '{"Layers": [{"Name": "l", "LayerType": "gemm", "Metadata": ""}]}'
    inspector = of("EngineInspector", get_engine_information=lambda format: told)
    made = {"create_engine_inspector": lambda: inspector, "create_execution_context": lambda: context}
    return _contexts.Loaded(trt, of("ICudaEngine", **made), [])


@pytest.mark.usefixtures("gpu")
def test_an_engine_is_placed_run_and_profiled() -> None:
    context = of("IExecutionContext")
    engine = loaded(context)
    bind = functools.partial(_contexts.bind, engine, OUTPUTS)
    with OnGpu(lambda: _contexts.computing(engine), bind).runner(SIGNATURE, AS_CALLED, True) as run:
        assert run(ROWS)["y"].shape == (1, 8)
    several = replace(engine, profiles=((8, 8, 8), (1, 1, 1)))
    x, y = torch.ones(1, 8), torch.empty((1, 8), device="cuda")
    _contexts.computing(several)({"x": x}, {"y": y})
    call = clocks.DeviceCall(lambda x: _contexts.bind(engine, OUTPUTS, x), clocks.Inputs({"e": [ROWS]}).pinned["e"])
    assert call.uncaptured is None and context.nvtx_verbosity == trt.ProfilingVerbosity.NONE
    assert _contexts.layer_times(engine, OUTPUTS, [ROWS]) == ()
    profiler = context.profiler
    profiler.report_layer_time("l", 1.0)
    assert profiler.seconds == {"l": 1e-3}


@pytest.mark.usefixtures("gpu")
def test_what_is_overridden_is_there_and_takes_as_much() -> None:
    context = of("IExecutionContext")
    _contexts.layer_times(loaded(context), OUTPUTS, [ROWS])
    for ours in (_polygraphy._logger(trt), _polygraphy.monitor(trt, lambda *_: None), context.profiler):
        (base,) = type(ours).__bases__
        methods = {name: one for name, one in vars(type(ours)).items() if inspect.isfunction(one)}
        for name in methods.keys() - {"__init__"}:
            given = (ours, *("" for _ in range(len(inspect.signature(methods[name]).parameters) - 1)))
            called(trt, f"{base.__name__}.{name}", getattr(base, name), given, {})


def test_the_stand_ins_have_nothing_else() -> None:
    for fake, real in ((fake_tensorrt.Context, trt.IExecutionContext), (fake_tensorrt.Engine, trt.ICudaEngine)):
        names = {name for name in vars(fake) if not name.startswith("_")} - {"create_runtime_config"}
        assert not {name for name in names if not hasattr(real, name)}


def test_the_plugin_is_registered_as_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decorators read signatures and annotations, and refuse those that they do not know."""
    monkeypatch.setattr(trt, "get_plugin_registry", lambda: of("IPluginRegistry"))
    plugin = kernels.load("segment_grouped_projection.plugin")
    plugin.register(importlib.import_module("tensorrt.plugin"), 90)
    known = importlib.import_module("tensorrt.plugin._lib").QDP_REGISTRY
    definition = known[f"{plugin.NAMESPACE}::{plugin.NAME}"]
    assert definition.register_func and definition.autotune_func and definition.aot_impl_func


def test_python_knows_all_that_the_example_in_cpp_calls() -> None:
    text = (REPOSITORY / "examples" / "plan.cpp").read_text(encoding="utf-8")
    kinds = {"runtime": trt.Runtime, "engine": trt.ICudaEngine, "context": trt.IExecutionContext}
    calls = set(re.findall(r"(\w+)->(\w+)\(", text))
    assert {kind for kind, _ in calls} == {*kinds} and OF_CPP.keys() <= {method for _, method in calls}
    for kind, method in calls:
        assert hasattr(
            kinds[kind], OF_CPP.get(method) or re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", method)
        )
    types = set(re.findall(r"DataType::k(\w+)", text))
    assert types <= trt.DataType.__members__.keys() and "FLOAT" in types


def test_gpus_of_the_past_are_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "probe", lambda: nvidia.Gpu("NVIDIA Example", "sm90", "13.0"))
    assert backend.BACKENDS[0].supports("fp16") is None
