"""What stands beside the times of a measurement: layers by module, the roofline, memory, and the machine."""

from __future__ import annotations

import io
import json
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch
from onnx import TensorProto, helper
from rich.console import Console
from torch import nn

from mlpdeploy.engine.backend import BuildRequest, LayerTime, backends
from mlpdeploy.engine.backends import onnxruntime
from mlpdeploy.engine.backends import openvino as openvino_backend
from mlpdeploy.engine.batch import Batch
from mlpdeploy.evidence.documents import layer_profile, memory
from mlpdeploy.evidence.documents.bench import read
from mlpdeploy.evidence.latency import by_module, contenders, machine, roofline
from mlpdeploy.graph.tracing.trace import TensorSpec
from mlpdeploy.progress import Silent
from mlpdeploy.terminal.measurements import print_bench
from tests.engine import small_networks

EXAMPLE = Path(__file__).parents[2] / "data" / "bench.json"
SPEC = TensorSpec("image", (3, 4, 4), torch.float32)


def test_layers_belong_to_the_module_they_name_or_to_the_one_before() -> None:
    nodes = {"stem/Conv", "blocks.0.fc1/MatMul", "blocks.0.fc1/MatMul_1", "Add"}
    found = by_module.by_module(
        [
            LayerTime("Reorder", "input_abcd_stem/Conv", (1e-3,)),
            LayerTime("Conv", "stem/Conv", (2e-3,)),
            LayerTime("Gemm", "fused", (3e-3,), ("blocks.0.fc1/MatMul_1",)),
            LayerTime("Gelu", "BiasGelu_token_0", (1e-3,)),
            LayerTime("Add", "Add", (1e-3,)),
        ],
        nodes,
        4,
        "openvino",
    )
    assert [(one.path, round(one.milliseconds, 6)) for one in found.modules] == [
        ("stem", 3.0), ("blocks.0.fc1", 4.0), (by_module.ITSELF, 1.0),
    ]  # fmt: skip
    assert found.modules[1].layers == pytest.approx({"Gemm": 3.0, "Gelu": 1.0})
    assert sum(one.share for one in found.modules) == pytest.approx(1.0) and found.milliseconds == pytest.approx(8.0)


def test_what_a_form_made_of_a_node_is_of_the_module_of_that_node() -> None:
    nodes = {
        "blocks.0.fc1/MatMul/rows0": "blocks.0.fc1", "norm/LayerNormalization/3": "norm", "Q/MatMul_1/back": "Q",
        "tokens/segment_grouped_projection/rows0": "tokens", "head/Gemm": "head", "Add/rows1": by_module.ITSELF,
        "LayerNormalization/12": by_module.ITSELF, "segment_grouped_projection_1/back": by_module.ITSELF,
    }  # fmt: skip
    for node, module in nodes.items():
        found = by_module.by_module([LayerTime("Any", node, (1e-3,))], nodes, 1, "openvino")
        assert [one.path for one in found.modules] == [module]


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_engines_tell_the_time_of_layers_by_our_names(name: str, tmp_path: Path) -> None:
    backend, emitted = backends()[name], small_networks.emitted("fp32")
    built = contenders.build(backend, emitted, BuildRequest("fp32", Batch(1, 2, 4)), tmp_path / "x", Silent()).on(1)
    inputs = [{"image": small_networks.images(2, seed).numpy()} for seed in range(3)]
    found = backend.profile(built.engine, built.facts, inputs)
    assert not isinstance(found, str) and len(found) > 3 and all(one.seconds >= 0 for one in found)
    names = {node.name for node in emitted.model.graph.node}
    assert any(node in part for node in names for one in found for part in (one.name, *one.origins))


def test_the_time_of_a_layer_is_the_median_of_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = [
        {"cat": "Node", "name": "a_kernel_time", "dur": dur, "args": {"op_name": "Relu"}} for dur in (4160.0, 1580.0)
    ]
    (tmp_path / "profile.json").write_text(json.dumps(events))
    session = SimpleNamespace(
        get_inputs=lambda: [], run=lambda *_: None, end_profiling=lambda: str(tmp_path / "profile.json")
    )
    engine = tmp_path / "engine"
    engine.write_bytes(b"")
    monkeypatch.setattr(onnxruntime, "open_session", lambda *_, **__: session)
    (layer,) = onnxruntime.BACKEND.profile(engine, {}, [{}, {}])
    assert layer == LayerTime("Relu", "a", (4.16e-3, 1.58e-3)) and layer.seconds == pytest.approx(2.87e-3)

    executed = openvino.ProfilingInfo.Status.EXECUTED
    times = iter([timedelta(milliseconds=4.16), timedelta(milliseconds=1.58)])

    class Request:
        def infer(self, arrays: Any) -> None:
            row = SimpleNamespace(status=executed, node_name="a", node_type="Relu", real_time=next(times))
            self.profiling_info = [row]

    compiled = SimpleNamespace(
        get_runtime_model=lambda: SimpleNamespace(get_ops=lambda: []), create_infer_request=Request, inputs=[]
    )
    monkeypatch.setattr(openvino_backend, "imported", lambda *_, **__: compiled)
    (layer,) = openvino_backend.BACKEND.profile(engine, {}, [{}, {}])
    assert layer == LayerTime("Relu", "a", (4.16e-3, 1.58e-3)) and layer.seconds == pytest.approx(2.87e-3)


def test_times_of_layers_in_trtexecs_form() -> None:
    layers = [LayerTime("Conv", "stem", (1e-3, 2e-3, 6e-3)), LayerTime("Add", "head", (1e-3,))]
    count, stem, head = json.loads(layer_profile.text(layers))
    assert count == {"count": 3}
    assert stem == {
        "name": "stem", "timeMs": pytest.approx(9), "averageMs": pytest.approx(3), "medianMs": pytest.approx(2),
        "percentage": pytest.approx(90),
    }  # fmt: skip
    assert head["name"] == "head" and head["percentage"] == pytest.approx(10)
    assert json.loads(layer_profile.text([LayerTime("Add", "x", (0.0, 0.0))]))[1]["percentage"] == 0


def test_an_engine_without_a_profiler_says_so(tmp_path: Path) -> None:
    assert backends()["inductor"].profile(tmp_path, {}, []) == "inductor does not tell the time of its layers"


def test_multiply_accumulates_are_counted_for_one_image() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 10), nn.ReLU(), nn.Linear(10, 5))
    assert roofline.macs_of(network, [SPEC]) == 48 * 10 + 10 * 5
    assert roofline.macs_of(nn.Conv2d(3, 8, 2, 2), [SPEC]) == 2 * 2 * 8 * 3 * 2 * 2


def test_the_limit_is_the_longer_of_computing_and_moving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "peak_macs", lambda *_: 1e6)
    monkeypatch.setattr(roofline, "copy_bandwidth", lambda *_: 1e6)
    network, output = nn.Sequential(nn.Flatten(), nn.Linear(48, 10)), TensorSpec("logits", (10,), torch.float32)
    found = roofline.roofline(
        network, [SPEC], [output], "fp32", "f32", 1, "cpu", {1: {"engine": 10.0}, 64: {"engine": 64.0}}
    )
    weights, each = 4 * (480 + 10), 4 * (48 + 10)
    assert found.limits[0].bound == "memory" and found.limits[0].limit_ms == pytest.approx((weights + each) / 1e3)
    assert found.limits[1].bound == "compute" and found.limits[1].limit_ms == pytest.approx(64 * 480 / 1e3)
    assert found.limits[1].percent_of_limit["engine"] == pytest.approx(100 * 30.72 / 64)


def chain(batch: int | str = "batch") -> onnx.ModelProto:
    """x -> Relu -> Reshape (a view) -> Add with x."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 6])
    return small_networks.graph_model(
        [
            helper.make_node("Relu", ["x"], ["a"]),
            helper.make_node("Reshape", ["a", "shape"], ["b"]),
            helper.make_node("Add", ["b", "w"], ["c"]),
            helper.make_node("Relu", ["c"], ["y"]),
        ],
        {"x": (TensorProto.FLOAT, [batch, 2, 3])},
        {"y": (TensorProto.FLOAT, [batch, 6])},
        {"shape": np.array(shape.int64_data, np.int64), "w": np.ones(6, np.float32)},
    )


@pytest.mark.parametrize("batch", [1, 5])
def test_the_memory_of_a_graph_is_what_is_alive_at_once(batch: int) -> None:
    value, weights = 24 * batch, 24 + 16
    # The input and two values: `b` is a view of `a`, which is gone when `y` is made.
    assert memory.peak_bytes(chain(), batch) == 3 * value + weights


def test_memory_that_cannot_be_told_is_not_guessed() -> None:
    model = chain()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "unknown"
    assert memory.peak_bytes(model, 2) == "the shape of a is not known"


def test_fingerprints_name_what_differs() -> None:
    here = machine.fingerprint()
    assert machine.differences(here, json.loads(json.dumps(here))) == []
    other = {**here, "cores": 96, "versions": {**here["versions"], "torch": "1.0"}}
    assert machine.differences(here, other) == [
        f"cores {here['cores']} (was 96)", f"torch {here['versions']['torch']} (was 1.0)",
    ]  # fmt: skip
    assert (
        set(machine.conditions()) == {"load", "governor", "mhz", "celsius", "gpu"} and machine.cache_bytes() > 1 << 15
    )


def test_times_of_the_hosts_clock_are_of_another_machine_than_those_of_device_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = {name: value for name, value in machine.fingerprint().items() if name != "gpu_clock"}
    monkeypatch.setattr(machine.nvidia, "probe", lambda: "no NVIDIA GPU")
    assert machine.differences(machine.fingerprint(), {**before, "gpu": None}) == []
    monkeypatch.setattr(machine.nvidia, "probe", lambda: machine.nvidia.Gpu("Example", "sm90", "13.0"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    here = machine.fingerprint()
    assert machine.differences(here, {**before, "gpu": here["gpu"]}) == ["gpu_clock device events (was None)"]


def test_the_example_is_shown_within_80_columns() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    print_bench(console, read(EXAMPLE))
    text = console.export_text()
    assert "images/s" in text and "blocks.0.mlp_channels.fc1" in text and "What each rule is worth" in text
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines() if "reached" not in line)
