"""The torch-tensorrt backend without a GPU: through a stand-in of the library, which fails to import without one."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from mlpdeploy.engine import nvidia, programs
from mlpdeploy.engine.backend import BuildRequest, backends
from mlpdeploy.engine.backends import torch_tensorrt
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.onnx.emit import Emitted
from mlpdeploy.engine.runner import OnDevice
from mlpdeploy.errors import ArtifactError, BuildError, InputError
from mlpdeploy.graph import custom_ops
from mlpdeploy.graph.precision.typed import Typed
from mlpdeploy.graph.tracing.trace import TensorSpec
from tests.engine.backends.test_plugin_choice import Silent
from tests.engine.fake_gpu import gpu

__all__ = ["gpu"]


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (custom_ops.segment_grouped_projection(x, self.weight, 4).relu(),)


def emitted() -> Emitted:
    batch = torch.export.Dim("batch", min=1, max=64)
    module = torch.export.export(Network(), (torch.randn(3, 4, 5, 2),), dynamic_shapes=({0: batch},)).module()
    port = TensorSpec("x", (4, 5, 2), torch.float32)
    return Emitted(None, Typed(module, "fp32", (port,), (TensorSpec("y", (4, 5, 2), torch.float32),)))  # type: ignore[arg-type]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Torch-TensorRT as its documentation has it; it compiles nothing, runs on the CPU, and notes what it was asked."""
    asked: list[dict[str, Any]] = []

    def compile_program(program: Any, *, arg_inputs: list[Any], **options: Any) -> torch.fx.GraphModule:
        asked.append({"program": program, "inputs": arg_inputs, **options})
        if options.get("optimization_level") == 5:
            raise RuntimeError("the builder gave up\nat length")
        return program.module()

    def save(module: Any, path: str, *, output_format: str, arg_inputs: list[Any]) -> None:
        assert output_format == "exported_program"
        torch.export.save(asked[-1]["program"], path)

    made: Any = ModuleType("torch_tensorrt")
    made.Input, made.save = lambda **facts: facts, save
    made.dynamo = SimpleNamespace(compile=compile_program)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", made)
    monkeypatch.setattr(torch_tensorrt, "missing", lambda module, install: None)
    monkeypatch.setattr(torch_tensorrt, "installed_version", {"torch": "2", "torch-tensorrt-rtx": "2.14.0"}.get)
    monkeypatch.setattr(nvidia, "probe", lambda: nvidia.Gpu("Stand-in", "sm90", "13.0"))
    monkeypatch.setattr(programs, "unserved", lambda gpu: None)
    monkeypatch.setattr(torch_tensorrt, "unserved", lambda flavour, gpu: None)
    monkeypatch.setattr(
        "torch.export.passes.move_to_device_pass", lambda program, device: device == "cuda:0" and program
    )
    return asked


@pytest.mark.parametrize(
    ("installed", "flavour"), [("torch-tensorrt-rtx", "tensorrt-rtx"), ("torch-tensorrt", "tensorrt")]
)
def test_what_pytorch_or_the_flavours_tensorrt_does_not_serve_runs_nothing(
    library: Any, installed: str, flavour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = backends()["torch-tensorrt"]
    monkeypatch.setattr(torch_tensorrt, "installed_version", {"torch": "2", installed: "2.14.0"}.get)
    monkeypatch.setattr(torch_tensorrt, "unserved", lambda name, gpu: f"{name} has no {gpu.capability}")
    assert backend.available() == backend.executable() == f"{flavour} has no sm90"
    monkeypatch.setattr(programs, "unserved", lambda gpu: "the driver is too old")
    assert backend.available() == backend.executable() == "the driver is too old"


def test_it_compiles_the_rewritten_graph_and_saves_a_program(
    library: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    backend, given = backends()["torch-tensorrt"], emitted()
    built = backend.build(given, BuildRequest("fp32", Batch(1, 2, 4), level=3), tmp_path, Silent())
    (asked,) = library
    shapes = {"min_shape": (1, 4, 5, 2), "opt_shape": (2, 4, 5, 2), "max_shape": (4, 4, 5, 2)}
    assert asked["inputs"] == [{**shapes, "dtype": torch.float32, "name": "x"}]
    assert asked["disable_tf32"] and asked["optimization_level"] == 3
    targets = [node.target for node in asked["program"].graph.nodes]
    assert custom_ops.SEGMENT_GROUPED_PROJECTION not in targets and torch.ops.aten.linear.default in targets
    assert built.engine.name == "engine.ep" and built.facts["gpus"] == ["sm90"]
    assert built.facts["versions"] == {"torch-tensorrt-rtx": "2.14.0", "torch": "2"}
    assert built.facts["placed"]["in_tensorrt"] == 0 and "0% of the operations in TensorRT" in built.facts["executed"]
    x = torch.randn(3, 4, 5, 2)
    request.getfixturevalue("gpu")
    with backend.load(built.engine, built.facts) as run:
        assert torch.allclose(torch.from_numpy(run({"x": x.numpy()})["y"]), Network()(x)[0], atol=1e-6)
        assert isinstance(run, OnDevice)
        (y,) = run.bind({"x": x}).run()
        assert torch.allclose(y, Network()(x)[0], atol=1e-6)


def test_tf32_a_fixed_batch_and_refusals(library: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    backend = backends()["torch-tensorrt"]
    built = backend.build(emitted(), BuildRequest("tf32", Batch(4, 4, 4)), tmp_path, Silent())
    assert not library[-1]["disable_tf32"] and library[-1]["inputs"][0]["shape"] == (4, 4, 5, 2)
    with pytest.raises(BuildError, match="cannot compile the graph: the builder gave up"):
        backend.build(emitted(), BuildRequest("fp32", Batch(1, 2, 4), level=5), tmp_path, Silent())
    assert "drop --gpu" in str(backend.supports("fp16", ("sm86",)))
    with (
        pytest.raises(ArtifactError, match="built for sm80"),
        backend.load(built.engine, {**built.facts, "gpus": ["sm80"]}),
    ):
        pass
    request.getfixturevalue("gpu")
    with backend.load(built.engine, built.facts) as run, pytest.raises(InputError, match="batch 4; it was given 1"):
        run({"x": torch.zeros(1, 4, 5, 2).numpy()})


def test_the_share_of_operations_in_tensorrt() -> None:
    """Two of three operations in an engine, one left in PyTorch beside a pick from a tuple, which is none."""
    total = torch.fx.Graph()
    x = total.placeholder("x")
    for target in (torch.ops.aten.relu.default, torch.ops.aten.neg.default, torch.ops.aten.sin.default):
        x = total.call_function(target, (x,))
    left = torch.fx.Graph()
    left.output(left.call_function(torch.ops.aten.sin.default, (left.placeholder("x"),)))
    root = torch.nn.Module()
    root.add_module("_run_on_acc_0", torch.nn.Identity())
    root.add_module("_run_on_gpu_1", torch.fx.GraphModule(torch.nn.Module(), left))
    outer = torch.fx.Graph()
    outer.output(outer.call_module("_run_on_gpu_1", (outer.call_module("_run_on_acc_0", (outer.placeholder("x"),)),)))
    found = torch_tensorrt.placed(torch.fx.GraphModule(root, outer), total)
    assert found == {"operations": 3, "in_pytorch": 1, "engines": 1, "in_tensorrt": 0.6667}


def test_our_operation_is_replaced_by_what_it_means() -> None:
    program = programs.exported(emitted(), Batch(1, 2, 4)).run_decompositions(programs.meanings())
    x = torch.randn(4, 4, 5, 2)
    assert torch.allclose(program.module()(x)[0], Network()(x)[0], atol=1e-6)
    assert custom_ops.SEGMENT_GROUPED_PROJECTION not in [node.target for node in program.graph.nodes]
