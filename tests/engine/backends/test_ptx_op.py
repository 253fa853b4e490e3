"""Our kernel in Torch-TensorRT's engines, through a stand-in of its `ptx_op`, and that against the real one."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from mlpdeploy.engine import nvidia
from mlpdeploy.engine.backend import BuildRequest, backends
from mlpdeploy.engine.backends import torch_tensorrt
from mlpdeploy.engine.batch import Batch
from mlpdeploy.errors import BuildError
from mlpdeploy.graph import custom_ops
from tests.engine.backends.test_plugin_choice import Silent
from tests.engine.backends.test_torch_tensorrt import emitted

pytest.importorskip("triton", reason="Triton, which compiles the plugin's kernel, is not installed")

from tests.plugins.stand_in import Module
from tests.plugins.symbolic import ShapeExpr, TensorDesc

VERSION = "2.14.0"
REQUEST = BuildRequest("fp32", Batch(1, 2, 4), plugin="on")


@dataclass
class Asked:
    """A call of `ptx_op`."""

    name: str
    ptx: bytes
    entry: str
    meta: Callable[..., Any]
    aot: Callable[..., Any]
    dynamic: bool


class Kernels(ModuleType):
    """`torch_tensorrt.kernels`: defines the operation as the real one does, and notes what it was given."""

    def __init__(self) -> None:
        super().__init__("torch_tensorrt.kernels")
        self.asked: list[Asked] = []
        self.libraries: list[Any] = []
        self.refusal: Exception | None = None

    def ptx_op(
        self,
        op_name: str,
        ptx: bytes,
        kernel_name: str,
        meta_fn: Callable[..., Any],
        eager_fn: Callable[..., Any],
        aot_fn: Callable[..., Any],
        *,
        supports_dynamic_shapes: bool = False,
        requires_output_allocator: bool = False,
        priority: Any = None,
        capability_validator: Callable[..., Any] | None = None,
        schema: str | None = None,
    ) -> None:
        if self.refusal is not None:
            raise self.refusal
        space, name = op_name.split("::")
        library = torch.library.Library(space, "FRAGMENT")
        library.define(f"{name}{schema}")
        library.impl(name, eager_fn, "CPU")
        torch.library.register_fake(op_name)(meta_fn)
        self.libraries.append(library)
        self.asked.append(Asked(name, ptx, kernel_name, meta_fn, aot_fn, supports_dynamic_shapes))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Torch-TensorRT with a compiler that takes all into one engine, unless it is told to leave all to PyTorch."""
    from mlpdeploy.engine.backends import _ptx_op

    kernels, made = Kernels(), ModuleType("torch_tensorrt")
    state = SimpleNamespace(kernels=kernels, leaves=False, program=None)

    def compile_program(program: Any, **options: Any) -> torch.nn.Module:
        state.program = program
        if state.leaves:
            return program.module()  # type: ignore[no-any-return]
        whole = torch.nn.Module()
        whole.add_module("_run_on_acc_0", program.module())
        return whole

    made.__dict__.update(
        kernels=kernels, Input=lambda **facts: facts, dynamo=SimpleNamespace(compile=compile_program),
        save=lambda module, path, **_: Path(path).write_bytes(b"engine"),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "torch_tensorrt", made)
    monkeypatch.setitem(sys.modules, "torch_tensorrt.kernels", kernels)
    monkeypatch.setattr(torch_tensorrt, "missing", lambda module, install: None)
    monkeypatch.setattr(torch_tensorrt, "installed_version", {"torch": "2", "torch-tensorrt": VERSION}.get)
    monkeypatch.setattr(nvidia, "probe", lambda: nvidia.Gpu("Stand-in", "sm90", "99.0"))
    monkeypatch.setattr("torch.export.passes.move_to_device_pass", lambda program, device: program)
    _ptx_op._registered.cache_clear()
    yield state
    _ptx_op._registered.cache_clear()
    for one in kernels.libraries:
        one._destroy()


def test_a_projection_is_one_operation_with_its_kernel_and_its_batch_is_free(
    library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = backends()["torch-tensorrt"].build(emitted(), REQUEST, tmp_path, Silent())
    assert built.facts["plugin"] == {"used": True, "reason": None, "milliseconds": {}}
    (asked,) = library.kernels.asked
    assert asked.dynamic and f".entry {asked.entry}(" in asked.ptx.decode() and b".target sm_90" in asked.ptx
    targets = [str(node.target) for node in library.program.graph.nodes]
    assert f"mlpdeploy.{asked.name}.default" in targets and "aten.linear.default" not in targets
    for batch in (1, 3, 4):
        x = torch.randn(batch, 4, 5, 2)
        (y,) = library.program.module()(x)
        weight = next(iter(emitted().typed.module.parameters()))
        assert torch.allclose(y, custom_ops.by_permuting(x, weight, 4).relu(), atol=1e-6)

    # The launch is an expression of the batch, as TensorRT's own plugin API has it.
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", Module())
    described = TensorDesc([ShapeExpr(lambda batch: batch), *(ShapeExpr(size) for size in (4, 5, 2))])
    parameters, arguments = asked.aot([described, TensorDesc()], (TensorDesc(),), 0)
    assert parameters.grid_x.at(64) >= parameters.grid_x.at(1) >= 1 and arguments[0].at(7) == 7
    assert parameters.block_x.at(1) % 32 == 0 and parameters.shared_mem.at(1) <= 48 << 10
    # TensorRT asks for the result's shape with symbols alone, of the right rank and nothing else.
    assert tuple(asked.meta(torch.empty(5, 5, 5, 5, device="meta"), torch.empty(5, 5, device="meta")).shape) == (
        5,
        4,
        5,
        2,
    )


def test_it_is_asked_for_by_on_alone(library: Any, tmp_path: Path) -> None:
    for plugin in ("auto", "off"):
        request = BuildRequest("fp32", Batch(1, 2, 4), plugin=plugin)
        assert "plugin" not in backends()["torch-tensorrt"].build(emitted(), request, tmp_path, Silent()).facts
    assert library.kernels.asked == []


def test_the_same_projection_is_registered_once_and_tf32_is_another(library: Any, tmp_path: Path) -> None:
    for precision in ("fp32", "fp32", "tf32"):
        request = BuildRequest(precision, Batch(1, 2, 4), plugin="on")
        backends()["torch-tensorrt"].build(emitted(), request, tmp_path, Silent())
    assert len({one.name for one in library.kernels.asked}) == len(library.kernels.asked) == 2


def test_what_cannot_be_carried_is_one_line(library: Any, tmp_path: Path) -> None:
    library.kernels.refusal = RuntimeError("TensorRT QDP plugins are not available. Requires TensorRT >= 10.7.0")
    with pytest.raises(BuildError, match="the plugin cannot be registered: RuntimeError: TensorRT QDP plugins are not"):
        backends()["torch-tensorrt"].build(emitted(), REQUEST, tmp_path, Silent())
    library.kernels.refusal, library.leaves = None, True
    with pytest.raises(BuildError, match="Torch-TensorRT left it to PyTorch"):
        backends()["torch-tensorrt"].build(emitted(), REQUEST, tmp_path, Silent())


def test_rtx_has_none(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert backends()["torch-tensorrt"].plugins() is None
    monkeypatch.setattr(torch_tensorrt, "installed_version", {"torch": "2", "torch-tensorrt-rtx": VERSION}.get)
    assert "torch-tensorrt-rtx has no plugins" in str(backends()["torch-tensorrt"].plugins())


@pytest.mark.slow
@pytest.mark.online
def test_the_stand_in_takes_what_the_wheel_takes(tmp_path: Path) -> None:
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path)]
    subprocess.run([*fetch, f"torch-tensorrt=={VERSION}"], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        texts = {name: archive.read(f"torch_tensorrt/kernels/{name}.py").decode() for name in ("_ops", "_register")}
    body = ast.parse(texts["_ops"]).body
    real = next(one for one in body if isinstance(one, ast.FunctionDef) and one.name == "ptx_op").args
    ours = [one for one in inspect.signature(Kernels.ptx_op).parameters.values() if one.name != "self"]
    by_place = [one.name for one in ours if one.kind is one.POSITIONAL_OR_KEYWORD]
    assert [one.arg for one in real.args] == by_place and not real.defaults
    assert [one.arg for one in real.kwonlyargs] == [one.name for one in ours if one.name not in by_place]
    # The launch is asked for with these three, and may be a pair with the arguments beside the tensors.
    assert "result = _user_aot_fn(inputs, outputs, tactic)" in texts["_register"]
    assert "launch_params, extra_args = result" in texts["_register"]
