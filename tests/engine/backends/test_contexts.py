"""TensorRT's contexts for timing and profiling without a GPU: through stand-ins of TensorRT and of torch.cuda."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mlpdeploy.engine import nvidia
from mlpdeploy.engine.backend import BuildRequest, backends
from mlpdeploy.engine.backends.tensorrt import _contexts, _polygraphy
from mlpdeploy.engine.backends.tensorrt.parsed import origins
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.on_gpu import OnGpu
from mlpdeploy.engine.runner import Loading, OnDevice
from mlpdeploy.engine.signature import Port, Signature
from mlpdeploy.errors import ArtifactError, MachineLacks
from mlpdeploy.evidence.latency import by_module, clocks
from mlpdeploy.progress import Silent
from tests.engine.backends.fake_tensorrt import LAYERS, OUTPUTS, Cache, Context, Engine, tensorrt
from tests.engine.fake_gpu import SECONDS, Gpu, gpu
from tests.engine.small_networks import emitted, images, reference

__all__ = ["gpu"]


def loaded(flavour: str, engine: Engine, *errors: str) -> _contexts.Loaded:
    return _contexts.Loaded(tensorrt(flavour), engine, list(errors))


SIGNATURE = Signature((Port("x", (4,), "float32"),), tuple(OUTPUTS), 1, 9)


def calls(loaded: _contexts.Loaded) -> AbstractContextManager[OnDevice]:
    """An engine as it is called, where PyTorch can use the GPU."""
    contexts = OnGpu(lambda: _contexts.computing(loaded), partial(_contexts.bind, loaded, OUTPUTS))
    return contexts.runner(SIGNATURE, Loading(), True)


def bind(gpu: Gpu, engine: Engine, flavour: str = "tensorrt", rows: int = 2) -> clocks.DeviceCall:
    def bound(inputs: Any) -> Any:
        return _contexts.bind(loaded(flavour, engine, "an error of TensorRT"), OUTPUTS, inputs)

    values = [{"x": np.full((rows, 4), float(place), np.float32)} for place in range(3)]
    return clocks.DeviceCall(bound, clocks.Inputs({"engine": values}).pinned["engine"])


def test_the_stand_ins_have_what_tensorrt_has() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    context = (
        "set_input_shape", "set_tensor_address", "get_tensor_shape", "execute_async_v3", "profiler", "nvtx_verbosity",
        "is_stream_capturable",
    )  # fmt: skip
    assert all(hasattr(trt.IExecutionContext, name) for name in context)
    assert all(hasattr(trt.ICudaEngine, name) for name in vars(Engine) if name.startswith("create"))
    assert all(hasattr(trt.EngineInspector, name) for name in ("execution_context", "get_engine_information"))
    assert hasattr(trt.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy")
    assert trt.IRuntimeConfig.create_runtime_cache and trt.IRuntimeConfig.set_runtime_cache
    assert all(hasattr(trt.IRuntimeCache, name) for name in vars(Cache) if not name.startswith("_"))
    assert trt.DynamicShapesKernelSpecializationStrategy.EAGER and trt.LayerInformationFormat.JSON is not None
    assert trt.ProfilingVerbosity.NONE is not None and trt.IProfiler.report_layer_time


@pytest.mark.parametrize(("flavour", "capturable"), [("tensorrt", None), ("tensorrt_rtx", True)])
def test_an_engine_is_bound_to_buffers_and_captured(gpu: Gpu, flavour: str, capturable: bool | None) -> None:
    engine = Engine(gpu, capturable)
    call = bind(gpu, engine, flavour)
    (context,) = engine.contexts
    assert call.uncaptured is None and context.shapes == {"x": (2, 4)} and context.nvtx_verbosity == "NONE"
    config = context.config and context.config.dynamic_shapes_kernel_specialization_strategy
    assert config == ("EAGER" if flavour == "tensorrt_rtx" else None)
    gpu.log.clear()
    assert call.phases(2).compute == pytest.approx(SECONDS["compute"])
    assert [(one.dtype, one.tolist()) for one in call._outputs] == [
        (torch.float32, [[4.0] * 4] * 2), (torch.float16, [[2.0] * 4] * 2),
    ]  # fmt: skip
    assert not {"allocate", "pin", "compute"} & {what for what, _ in gpu.log}


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt_rtx"])
def test_an_engine_is_called_through_pytorch_where_that_can_use_the_gpu(gpu: Gpu, flavour: str) -> None:
    with calls(loaded(flavour, Engine(gpu))) as run:
        found = [run({"x": np.full((rows, 4), float(rows), np.float32)}) for rows in (1, 3, 1)]
    for rows, outputs in zip((1, 3, 1), found, strict=True):
        assert outputs["y"].tolist() == [[2.0 * rows] * 4] * rows and outputs["y"].dtype == np.float32
        assert outputs["half"].tolist() == [[float(rows)] * 4] * rows and outputs["half"].dtype == np.float16


def test_what_tensorrt_refuses_in_a_call_is_told_in_its_own_words(gpu: Gpu) -> None:
    with calls(loaded("tensorrt", Engine(gpu), "an error of TensorRT")) as run:
        with pytest.raises(ArtifactError, match=r"TensorRT cannot take x of shape \[9, 4\]: an error of TensorRT"):
            run({"x": np.zeros((9, 4), np.float32)})
        assert run({"x": np.ones((2, 4), np.float32)})["y"].tolist() == [[2.0] * 4] * 2


def test_without_pytorchs_cuda_and_cudas_runtime_the_machine_lacks_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    _polygraphy.bind("tensorrt-rtx")

    class NoLibrary(Runner):
        def __enter__(self) -> Runner:
            raise OSError("libcudart.so: cannot open shared object file\nmore of it")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("polygraphy.backend.trt.TrtRunner", NoLibrary)
    with pytest.raises(MachineLacks) as raised, _contexts.by_polygraphy(loaded("tensorrt", Engine(None))):
        pass
    assert str(raised.value) == (
        "Polygraphy finds no CUDA runtime library (libcudart.so: cannot open shared object file); install a PyTorch "
        "that can use the GPU"
    )


def test_every_context_has_the_kernels_of_its_engine(gpu: Gpu) -> None:
    engine, kernels = Engine(gpu, True), object()
    for place in range(2):
        _contexts.context(_contexts.Loaded(tensorrt("tensorrt_rtx"), engine, [], kernels))
        assert engine.contexts[place].config.kernels is kernels


def test_every_size_has_a_context_of_its_own(gpu: Gpu) -> None:
    engine = Engine(gpu)
    one, two = bind(gpu, engine, rows=1), bind(gpu, engine, rows=3)
    assert [context.shapes["x"] for context in engine.contexts] == [(1, 4), (3, 4)]
    one.phases(1)
    two.phases(2)
    assert [call._outputs[0].tolist() for call in (one, two)] == [[[2.0] * 4], [[4.0] * 4] * 3]


PROFILES = ((1, 1, 1), (1, 4, 8), (4, 8, 8))


@pytest.mark.parametrize(("size", "place"), [(1, 0), (2, 1), (4, 1), (6, 1), (7, 2), (8, 2), (9, None)])
def test_a_batch_takes_the_profile_that_is_tuned_nearest_to_it(size: int, place: int | None) -> None:
    several = _contexts.Loaded(tensorrt("tensorrt"), None, [], profiles=PROFILES)
    assert several.profile(size) == place and loaded("tensorrt", Engine(None)).profile(size) is None


def test_a_context_changes_its_profile_where_a_batch_needs_another(gpu: Gpu) -> None:
    engine = Engine(gpu)
    several = _contexts.Loaded(tensorrt("tensorrt"), engine, ["an error of TensorRT"], profiles=PROFILES)
    compute, outputs = _contexts.computing(several), {}
    for rows, place in ((1, 0), (3, 1), (4, 1), (1, 0), (8, 2)):
        x, y, half = (torch.empty((rows, 4), dtype=one, device="cuda") for one in 2 * [torch.float32] + [torch.float16])
        outputs = {"y": y, "half": half}
        if place == 2:
            with pytest.raises(
                ArtifactError, match="TensorRT cannot use the profile for batch 8: an error of TensorRT"
            ):
                compute({"x": x}, outputs)
        else:
            compute({"x": x}, outputs)
            assert engine.contexts[0].active_optimization_profile == place
    _contexts.bind(several, OUTPUTS, {"x": torch.ones(3, 4)})
    assert engine.contexts[1].active_optimization_profile == 1


def test_an_engine_that_rtx_cannot_capture_runs_without_a_graph(gpu: Gpu) -> None:
    call = bind(gpu, Engine(gpu, capturable=False), "tensorrt_rtx")
    assert call.uncaptured == "TensorRT-RTX says that this engine cannot be captured" and not gpu.capture_modes
    gpu.log.clear()
    call.phases(1)
    assert ("compute", gpu.log[0][1]) in gpu.log and call._outputs[0].tolist() == [[2.0] * 4] * 2


def test_what_tensorrt_refuses_is_told_in_its_own_words(gpu: Gpu) -> None:
    engine = Engine(gpu)
    with pytest.raises(ArtifactError, match=r"TensorRT cannot take x of shape \[9, 4\]: an error of TensorRT"):
        bind(gpu, engine, rows=9)
    engine.broken = True
    with pytest.raises(ArtifactError, match="TensorRT cannot run the engine: an error of TensorRT"):
        bind(gpu, engine)
    engine.full = True
    with pytest.raises(ArtifactError, match="TensorRT cannot make room to run the engine: an error of TensorRT"):
        bind(gpu, engine)


def test_a_fused_layer_names_every_node_that_it_came_from() -> None:
    assert origins(LAYERS[1]["Metadata"]) == ("n1", "blocks.0.tokens/Call", "blocks.0.norm/Mul")
    assert origins(None) == origins("") == ()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_package_of_inductor_is_bound_where_it_runs_on_a_gpu(
    device: str, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = SimpleNamespace(run=lambda given: [2 * given[0], given[0].half()])
    monkeypatch.setattr("torch._inductor.aoti_load_package", lambda path: SimpleNamespace(loader=loader))
    monkeypatch.setattr(nvidia, "probe", lambda: nvidia.Gpu("Stand-in", "sm90", "13.0"))
    signature = Signature((Port("x", (4,), "float32"),), tuple(OUTPUTS), 1, 4)
    backend = backends()["inductor"]
    with (
        backend._load(Path("engine.pt2"), signature, {"device": device}) as contexts,
        contexts.runner(signature, Loading(), False) as runner,
    ):
        assert isinstance(runner, OnDevice) == (device == "cuda")
        if isinstance(runner, OnDevice):
            y, half = runner.bind({"x": torch.ones(2, 4)}).run()
            assert y.tolist() == [[2.0] * 4] * 2 and half.dtype == torch.float16
        else:
            found = runner({"x": np.ones((2, 4), np.float32)})
            assert found["y"].tolist() == [[2.0] * 4] * 2 and found["half"].dtype == np.float16


class Runner:
    """Polygraphy's TrtRunner on a context with a profiler: each layer reports once a run, the first one slowly."""

    def __init__(self, context: Context) -> None:
        self.context, self.runs = context, 0

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *error: object) -> None: ...

    def infer(self, feed_dict: Any, check_inputs: bool) -> Any:
        assert not check_inputs and set(feed_dict) == {"x"}
        self.runs += 1
        for place, layer in enumerate(self.context.engine.layers):
            name = layer if isinstance(layer, str) else layer["Name"]
            self.context.profiler.report_layer_time(name, 100.0 if self.runs == 1 else place + 0.25 * self.runs)
        return {}


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Runner` in Polygraphy, which is first bound to the flavour that the process may use: it can be bound once."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    _polygraphy.bind("tensorrt-rtx")
    monkeypatch.setattr("polygraphy.backend.trt.TrtRunner", Runner)


def test_the_profiler_tells_layers_by_our_names(runner: None) -> None:
    inputs = [{"x": np.zeros((2, 4), np.float32)}] * 3
    found = _contexts.layer_times(loaded("tensorrt_rtx", Engine(None)), [], inputs)
    assert [(one.type, one.seconds) for one in found] == [  # of runs 2, 3 and 4
        ("gemm", pytest.approx(0.75e-3)), ("kgen", pytest.approx(1.75e-3)), ("Reformat", pytest.approx(2.75e-3)),
    ]  # fmt: skip
    nodes = {"stem/Conv", "blocks.0.tokens/Call", "blocks.0.norm/Mul"}
    grouped = by_module.by_module(found, nodes, 2, "tensorrt")
    assert [(one.path, round(one.milliseconds, 6)) for one in grouped.modules] == [
        ("stem", 0.75), ("blocks.0.tokens", 4.5),
    ]  # fmt: skip


def test_the_profiler_needs_no_polygraphy_where_pytorch_can_use_the_gpu(gpu: Gpu) -> None:
    inputs = [{"x": np.zeros((2, 4), np.float32)}] * 3
    found = _contexts.layer_times(loaded("tensorrt", Engine(gpu)), OUTPUTS, inputs)
    assert [one.seconds for one in found] == [pytest.approx(1e-3 * milliseconds) for milliseconds in (1, 2, 3)]


def test_without_details_layers_keep_tensorrts_names(runner: None) -> None:
    engine = Engine(None)
    engine.layers = ["stem/Conv + stem/Relu"]
    (one,) = _contexts.layer_times(loaded("tensorrt", engine), [], [{"x": np.zeros((2, 4), np.float32)}])
    assert one.type == "layer" and (one.name, one.origins) == ("stem/Conv + stem/Relu", ())


def test_a_full_gpu_cannot_be_profiled_on(runner: None) -> None:
    engine = Engine(None)
    engine.full = True
    with pytest.raises(ArtifactError, match="TensorRT cannot make room to run the engine: it gave no reason"):
        _contexts.layer_times(loaded("tensorrt", engine), [], [{"x": np.zeros((2, 4), np.float32)}])


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_without_a_gpu_the_profile_says_why_not(name: str, tmp_path: Path) -> None:
    backend = backends()[name]
    reason = backend.executable()
    if reason is None:
        pytest.skip("engines run here")
    assert backend.profile(tmp_path, {}, []) == f"{name} tells the time of its layers where its engines run: {reason}"


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_a_gpu_times_and_profiles_an_engine(name: str, tmp_path: Path) -> None:
    backend = backends()[name]
    if (reason := backend.available() or backend.executable()) is not None or not torch.cuda.is_available():
        pytest.skip(reason or "PyTorch cannot use the GPU")
    built = backend.build(emitted("fp16"), BuildRequest("fp16", Batch(1, 2, 4)), tmp_path, Silent())
    x = images(2)
    with backend.load(built.engine, built.facts) as runner:
        assert isinstance(runner, OnDevice)
        inputs = clocks.Inputs({"": [{"image": x.numpy()}, {"image": images(2, 1).numpy()}]})
        call = clocks.DeviceCall(runner.bind, inputs.pinned[""])
        found = [call.phases(place) for place in (1, 0)]
        assert "captur" in (call.uncaptured or "captured")
        assert all(min(one.host_to_device, one.compute, one.device_to_host) > 0 for one in found)
        assert np.allclose(call._outputs[0].numpy(), reference("fp16", x), atol=2e-2)
        assert np.allclose(call._outputs[0].numpy(), runner({"image": x.numpy()})["logits"], atol=1e-3)
    times = backend.profile(built.engine, built.facts, [{"image": x.numpy()}] * 3)
    assert not isinstance(times, str) and times and sum(one.seconds for one in times) > 0
    assert any(node.name in part for node in built.prepared.model.graph.node for one in times for part in one.names)
