"""With the plugin, with the function's body, or whichever is faster: what `--plugin` means to each backend."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch

from mlpdeploy.engine import nvidia
from mlpdeploy.engine.backend import BuildRequest, backends, pick
from mlpdeploy.engine.backends.tensorrt import _parser, _plugin, _polygraphy, compute_capabilities
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.onnx.emit import Emitted
from mlpdeploy.engine.runner import Launch
from mlpdeploy.errors import BuildError, InputError, MachineLacks
from mlpdeploy.graph.precision.typed import Typed
from mlpdeploy.graph.tracing.trace import TensorSpec
from tests.engine.backends.test_plugin_file import model, needs_rtx, tensorrt
from tests.engine.fake_gpu import SECONDS, Gpu, gpu

__all__ = ["gpu"]


def emitted() -> Emitted:
    port = (TensorSpec("x", (4, 4, 4), torch.float32),)
    return Emitted(model(), Typed(torch.fx.GraphModule({}, torch.fx.Graph()), "fp32", port, port))


def request(plugin: str, precision: str = "fp32") -> BuildRequest:
    return BuildRequest(precision, Batch(1, 2, 4), plugin=plugin)


class Silent:
    def step(self, phase: str, done: int, total: int) -> None:
        pass


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`_plugin.build` where the plugin can be used, and each way makes a plan named after itself."""
    made: list[str] = []
    times = {"plugin": 1.0, "body": 2.0}
    failing: list[str] = []
    monkeypatch.setattr(_plugin, "refusal", lambda trt, model: None)
    monkeypatch.setattr(_plugin, "register", lambda: None)

    def milliseconds(trt: Any, plans: Any, typed: Any, batch: Batch) -> Any:
        return times if isinstance(times, str) else {size: {way: times[way] for way in plans} for size in (1, 4)}

    monkeypatch.setattr(_plugin, "milliseconds", milliseconds)

    def make(given: onnx.ModelProto) -> tuple[bytes, Any]:
        way = "plugin" if _plugin.is_called(given) else "body"
        made.append(way)
        if way in failing:
            raise BuildError(f"TensorRT cannot build the {way}\nin detail")
        return way.encode(), None

    def run(plugin: str) -> tuple[bytes, dict[str, Any]]:
        made.clear()
        (plan, _), facts = _plugin.build(None, emitted(), request(plugin), make)
        return plan, facts

    return SimpleNamespace(run=run, made=made, times=times, failing=failing)


def test_auto_builds_both_ways_and_keeps_the_faster(trial: Any) -> None:
    plan, facts = trial.run("auto")
    assert plan == b"plugin" and sorted(trial.made) == ["body", "plugin"]
    times = {"plugin at batch 1": 1.0, "body at batch 1": 2.0, "plugin at batch 4": 1.0, "body at batch 4": 2.0}
    assert facts == {"used": True, "reason": None, "milliseconds": times}
    trial.times["plugin"] = 3.0
    plan, facts = trial.run("auto")
    assert plan == b"body" and not facts["used"] and facts["milliseconds"]["plugin at batch 4"] == 3.0


def test_the_way_that_is_faster_over_all_batch_sizes_is_kept() -> None:
    small, large = {"plugin": 1.0, "body": 1.2}, {"plugin": 9.0, "body": 3.0}
    assert _plugin.fastest({1: small}) == "plugin" and _plugin.fastest({1: small, 8: large}) == "body"
    assert _plugin.fastest({1: small, 8: small, 32: {"plugin": 3.0, "body": 2.5}}) == "plugin"


def test_where_nothing_can_tell_the_body_is_kept_and_the_reason_is_said(
    trial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_plugin, "milliseconds", lambda *_: "PyTorch cannot use the GPU")
    assert trial.run("auto") == (b"body", {"used": False, "reason": "PyTorch cannot use the GPU", "milliseconds": {}})
    assert trial.run("on")[1]["used"]


def test_both_ways_are_timed_on_the_gpus_clock_at_every_batch_size(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    _polygraphy.bind("tensorrt-rtx")
    costs, sizes = {b"slow": 3, b"fast": 1}, list[int]()

    def bind(loaded: Any, outputs: Any, inputs: Any) -> Launch:
        sizes.append(len(inputs["x"]))
        assert [port.name for port in outputs] == ["x"]
        return Launch(lambda: [gpu.enqueue("compute", lambda: None) for _ in range(costs[loaded.engine])])

    monkeypatch.setattr(_plugin._contexts, "bind", bind)
    monkeypatch.setattr(_polygraphy, "collected_errors", lambda trt: contextlib.nullcontext([]))
    monkeypatch.setattr("polygraphy.backend.trt.engine_from_bytes", lambda plan: plan)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    found = _plugin.milliseconds(None, {"plugin": b"slow", "body": b"fast"}, emitted().typed, Batch(1, 2, 4))
    once = 1e3 * SECONDS["compute"]
    expected = {"plugin": pytest.approx(3 * once), "body": pytest.approx(once)}
    assert found == dict.fromkeys((1, 2, 4), expected) and sizes == [1, 1, 2, 2, 4, 4]


def test_without_pytorchs_cuda_nothing_can_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "cannot use the GPU" in str(_plugin.milliseconds(None, {}, emitted().typed, Batch(1, 2, 4)))


@pytest.mark.parametrize("error", [TypeError("unsupported callable"), ValueError("no schema"), ImportError("triton")])
def test_a_plugin_that_cannot_be_registered_costs_auto_nothing(
    trial: Any, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def register() -> None:
        raise error

    monkeypatch.setattr(_plugin, "register", register)
    plan, facts = trial.run("auto")
    told = f"the plugin cannot be registered: {type(error).__name__}: {error}"
    assert plan == b"body" and facts["reason"] == told
    with pytest.raises(BuildError, match="the engine cannot carry the plugin: the plugin cannot be registered"):
        trial.run("on")


def test_on_and_off_build_one_way(trial: Any) -> None:
    assert trial.run("on") == (b"plugin", {"used": True, "reason": None, "milliseconds": {}})
    assert trial.made == ["plugin"]
    assert trial.run("off") == (b"body", {"used": False, "reason": "--plugin off", "milliseconds": {}})
    assert trial.made == ["body"]


def test_a_plugin_that_cannot_be_built_costs_auto_nothing_and_on_everything(trial: Any) -> None:
    trial.failing.append("plugin")
    plan, facts = trial.run("auto")
    assert plan == b"body" and facts["reason"] == "TensorRT cannot build the plugin" and not facts["milliseconds"]
    with pytest.raises(BuildError, match="cannot carry the plugin: TensorRT cannot build the plugin"):
        trial.run("on")


def test_why_the_plugin_cannot_be_used_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    other = model()
    other.graph.node[0].op_type = "another"
    assert _plugin.refusal(SimpleNamespace(__name__="tensorrt_rtx"), model()) == "TensorRT-RTX has no plugins"
    assert _plugin.refusal(tensorrt(), other) == "the network has no operation that has a plugin"
    found: dict[str, Any] = {"triton": None}
    monkeypatch.setattr(_plugin.importlib.util, "find_spec", found.get)
    assert "pip install triton" in str(_plugin.refusal(tensorrt(), model()))
    found["triton"] = object()
    assert _plugin.refusal(tensorrt(), model()) == "TensorRT 10.13.0 has no module tensorrt.plugin"
    found["tensorrt.plugin"] = object()
    modules = {"tensorrt.plugin": SimpleNamespace()}
    real = _plugin.importlib.import_module
    monkeypatch.setattr(_plugin.importlib, "import_module", lambda name: modules.get(name) or real(name))
    assert "compiled ahead of time" in str(_plugin.refusal(tensorrt(), model()))
    modules["tensorrt.plugin"].aot_impl = None
    for found_gpu, reason in (
        ("no GPU here", "no GPU here"),
        (nvidia.Gpu("Old", "sm75", "12.8"), "needs compute capability 8.0"),
    ):
        monkeypatch.setattr(nvidia, "probe", lambda found_gpu=found_gpu: found_gpu)
        assert reason in str(_plugin.refusal(tensorrt(), model()))
    monkeypatch.setattr(nvidia, "probe", lambda: nvidia.Gpu("New", "sm90", "12.8"))
    assert _plugin.refusal(tensorrt(), model()) is None


@needs_rtx
def test_the_network_that_calls_plugins_wants_them_compiled_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    _polygraphy.bind("tensorrt-rtx")
    asked: list[int] = []
    flags = SimpleNamespace(STRONGLY_TYPED=1, PREFER_AOT_PYTHON_PLUGINS=3)
    builder = SimpleNamespace(create_network=lambda flags: asked.append(flags) or "network")
    parser = SimpleNamespace(parse=lambda data: data == b"model", num_errors=0)
    trt = tensorrt(
        NetworkDefinitionCreationFlag=flags, Builder=lambda logger: builder, OnnxParser=lambda network, logger: parser,
        init_libnvinfer_plugins=lambda logger, namespace: True,
    )  # fmt: skip
    monkeypatch.setattr("polygraphy.backend.trt.util.get_trt_logger", lambda: None)
    for typed, ahead in ((True, True), (False, True), (True, False)):
        assert _parser.network(trt, b"model", [], typed=typed, ahead=ahead) == (builder, "network", parser)
    assert asked == [0b1010, 0b1000, 0b0010]


@needs_rtx
@pytest.mark.parametrize("plugin", ["auto", "off"])
def test_tensorrt_rtx_uses_the_body(plugin: str, tmp_path: Path) -> None:
    built = backends()["tensorrt-rtx"].build(emitted(), request(plugin), tmp_path, Silent())
    assert built.facts["plugin"]["used"] is False and built.facts["plugin"]["milliseconds"] == {}
    assert built.facts["plugin"]["reason"] == ("--plugin off" if plugin == "off" else "TensorRT-RTX has no plugins")


TRITON = importlib.util.find_spec("triton") is not None


@pytest.mark.parametrize("name", sorted(backends()))
def test_a_backend_takes_plugins_or_says_in_one_line_that_it_has_none(name: str) -> None:
    reason = backends()[name].plugins()
    assert (reason is None) == (name == "tensorrt" or (name == "torch-tensorrt" and TRITON))
    assert reason is None or (name in reason and "--plugin" in reason and "\n" not in reason)


@needs_rtx
def test_on_is_a_wrong_wish_where_there_are_no_plugins(cli: Any) -> None:
    with pytest.raises(InputError, match="tensorrt-rtx has no plugins"):
        pick("tensorrt-rtx", "fp16", request=request("on"))
    assert pick("tensorrt-rtx", "fp16", request=request("auto")) is pick("tensorrt-rtx", request=request("off"))
    told = cli("build", "vip_s7", "--backend", "tensorrt-rtx", "--plugin", "on", code=2).stderr
    assert told.startswith("error: tensorrt-rtx has no plugins") and told.count("\n") == 1
    told = cli("build", "vip_s7", "--plugin", "perhaps", code=2).stderr
    assert "plugin 'perhaps' is not known: choose one of auto, on, off" in told


def test_current_means_this_machines_gpu_and_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(nvidia, "probe", lambda: nvidia.Gpu("New", "sm120", "13.0"))
    for flavour in ("tensorrt", "tensorrt-rtx"):
        assert compute_capabilities(flavour, ("current",), "fp16") is None
        with pytest.raises(InputError, match="stands alone"):
            compute_capabilities(flavour, ("current", "sm86"), "fp16")
    for found, said in (
        ("no NVIDIA GPU", "no NVIDIA GPU"),
        (nvidia.Gpu("H100", "sm90", "13.0"), "tensorrt-rtx runs on sm75, .*, and this machine's H100 is sm90"),
        (nvidia.Gpu("H100", "sm90", "10.0"), "the driver is too old"),
    ):
        monkeypatch.setattr(nvidia, "probe", lambda found=found: found)
        with pytest.raises(MachineLacks, match=f"--gpu current means this machine's GPU: {said}"):
            compute_capabilities("tensorrt-rtx", ("current",), "fp16")
        assert compute_capabilities("tensorrt-rtx", ("sm86",), "fp16") == [(8, 6)]
