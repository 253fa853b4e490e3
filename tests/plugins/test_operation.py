"""The operation on a GPU, without one: what compilers see of it, when the kernel serves, and what was measured."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from mlpdeploy import kernels
from mlpdeploy.engine import programs
from mlpdeploy.graph import custom_ops
from mlpdeploy.graph.operations import OPERATIONS

triton = pytest.importorskip("triton", reason="Triton, which the kernel is written in, is not installed")

launch: Any = kernels.load("segment_grouped_projection.launch")
tuning: Any = kernels.load("common.tuning")
problem: Any = kernels.load("segment_grouped_projection.problem")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forget()
    yield
    forget()


def forget() -> None:
    """What a process knows of files of measurements and of this machine's GPUs."""
    tuning._remembered.cache_clear()
    tuning.gpu.cache_clear()


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of compute capability 9.0 that exists for those who ask about it."""
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(triton.runtime.driver, "_active", SimpleNamespace(get_current_target=lambda: target))
    if torch.version.cuda is None:
        pytest.skip("this PyTorch was built without CUDA")


class Network(torch.nn.Module):
    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor]:
        return (torch.ops.mlpdeploy.segment_grouped_projection(x, weight, 16).relu(),)


class Weighted(torch.nn.Module):
    """The width branch of Permute-MLP, weighted and accumulated; its weights are every third of 1152 numbers."""

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor]:
        scale = x.mean((1, 2), keepdim=True).repeat_interleave(3, -1).unflatten(-1, (384, 3))[..., 1]
        run = torch.ops.mlpdeploy.segment_grouped_projection_epilogue
        return (run(x.reshape(-1, 16, 16, 24), weight, 16, None, None, scale, x.sin()),)


def compiled_graph(
    dtype: torch.dtype = torch.float16,
    shape: tuple[int, ...] = (16, 16, 24),
    largest: int | None = 64,
    network: torch.nn.Module | None = None,
    symbolic: bool = False,
) -> torch.fx.Graph:
    """What AOTAutograd, which torch.compile and AOTInductor share, makes of the operation on a GPU.

    `symbolic`: with a symbol for every size of x, which is what torch.compile makes of a second shape.
    """
    from torch._functorch.aot_autograd import aot_export_module

    with FakeTensorMode(), torch.no_grad():
        x = torch.empty(4, *shape, device="cuda", dtype=dtype)
        weight = torch.empty(384, 384, device="cuda", dtype=dtype)
        batch = torch.export.Dim("batch", min=1, max=largest)
        program = torch.export.export(network or Network(), (x, weight), dynamic_shapes=({0: batch}, None))
    targets = {node.target for node in program.graph.nodes}
    assert targets & OPERATIONS.keys()
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"]
    with values[0].fake_mode, torch.no_grad():
        return aot_export_module(program.module(check_guards=False), values, trace_joint=False)[0].graph


def kernel_calls(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    return [node for node in graph.nodes if "triton_kernel_wrapper" in str(node.target)]


def test_sizes_that_a_compiler_has_symbols_for_become_numbers_of_the_problem() -> None:
    environment = ShapeEnv()
    mode = FakeTensorMode(shape_env=environment)
    x, weight = (
        mode.from_tensor(one, symbolic_context=StatelessSymbolicContext([DimDynamic.DYNAMIC] * one.dim()))
        for one in (torch.empty(4, 16, 8, 24), torch.empty(384, 384))
    )
    assert all(isinstance(size, torch.SymInt) for size in (*x.shape, *weight.shape))
    found = launch.describe(x, weight, 16, bias=weight[0], scale=x[:2, 0, 0])
    sizes = [value for value in dataclasses.asdict(found).values() if not isinstance(value, str | None)]
    assert all(type(value) in (int, bool) for value in sizes), found
    assert (found.p, found.q, found.s, found.k, found.t, found.share) == (16, 8, 24, 16, 24, 2)
    assert isinstance(x.shape[0], torch.SymInt) and x.shape[0].node.hint == 4
    assert x.shape[0].node.expr not in environment.replacements  # the batch stays free


@pytest.mark.parametrize("trailing", [(), (3,)])
def test_compilers_see_the_kernel_and_its_grid_is_symbolic_in_the_batch(
    pretended: None, trailing: tuple[int, ...]
) -> None:
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table

    graph = compiled_graph(shape=(16, 16, 24, *trailing))
    (call,) = kernel_calls(graph)
    config = problem.Problem(16, 16, 24, *(trailing or (1,)), 16, 24, "fp16").default(4, 90)
    used = call.kwargs["kwargs"]
    assert [used[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K")] == [
        config.block_m,
        config.block_n,
        config.block_k,
    ]
    assert isinstance(used["batch"], torch.fx.Node) and used["batch"].target is torch.ops.aten.sym_size.int
    grid = call.kwargs["grid"][0][0]
    assert isinstance(grid, torch.fx.Node)  # computed in the graph, from the batch
    (choice,) = kernel_side_table.get_kernel(call.kwargs["kernel_idx"]).configs
    assert (choice.num_warps, choice.num_stages) == (config.warps, config.stages)
    targets = {node.target for node in graph.nodes}
    assert not targets & {torch.ops.aten.permute.default, torch.ops.aten.linear.default, torch.ops.aten.mm.default}


def test_compilers_see_the_epilogue_in_the_kernel(pretended: None) -> None:
    """Nothing is multiplied or added outside of it, and 16 batch entries are one image at every batch."""
    graph = compiled_graph(shape=(16, 16, 384), network=Weighted())
    (call,) = kernel_calls(graph)
    used = call.kwargs["kwargs"]
    assert (used["CHANNELS"], used["SHARE"]) == (384, 16)
    assert {"scale", "accumulate"} <= used.keys() and isinstance(used["accumulate"], torch.fx.Node)
    assert list(used["scale"].meta["val"].shape)[1:] == [384] and used["scale"].meta["val"].is_contiguous()
    targets = {node.target for node in graph.nodes}
    assert not targets & {torch.ops.aten.add.Tensor, torch.ops.aten.mul.Tensor, torch.ops.aten.mm.default}


def test_addresses_are_wide_enough_for_every_batch_that_the_graph_allows(pretended: None) -> None:
    for largest, wide in ((64, False), (1 << 20, True), (None, True)):
        (call,) = kernel_calls(compiled_graph(largest=largest))
        assert call.kwargs["kwargs"]["WIDE"] is wide


def test_where_the_library_was_measured_faster_compilers_see_that(pretended: None) -> None:
    shape = problem.Problem(16, 16, 24, 1, 16, 24, "fp16").shape_class(4)
    tuning.remember({shape: tuning.LIBRARY}, 90)
    graph = compiled_graph()
    assert not kernel_calls(graph)
    assert torch.ops.aten.permute.default in {node.target for node in graph.nodes}


def test_what_the_kernel_does_not_serve_is_permuted(pretended: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not kernel_calls(compiled_graph(torch.float64))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert not kernel_calls(compiled_graph())
    x, weight = torch.randn(2, 4, 3, 5), torch.randn(8, 20)
    assert not launch.serves(x, weight) and launch.dispatch(x, weight, 4) is None


@pytest.mark.parametrize("trailing", [(), (1,), (3,)])
def test_the_meaning_is_the_contraction(trailing: tuple[int, ...]) -> None:
    x, weight = torch.randn(2, 4, 3, 5, *trailing, dtype=torch.float64), torch.randn(12, 20, dtype=torch.float64)
    full = x.reshape(2, 4, 3, 5, -1)
    wanted = torch.einsum("bpqso,ktps->bkqto", full, weight.reshape(4, 3, 4, 5)).reshape(2, 4, 3, 3, *trailing)
    got = custom_ops.segment_grouped_projection(x, weight, 4)
    assert got.is_contiguous()
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(custom_ops.SEGMENT_GROUPED_PROJECTION, (x, weight, 4), test_utils=tests)


class Recorder:
    """A kernel that only notes which device is the current one while it is launched."""

    def __init__(self) -> None:
        self.current, self.seen = "cuda:0", list[str]()

    def __getitem__(self, grid: Any) -> Any:
        return lambda *given, **named: self.seen.append(self.current)

    @contextlib.contextmanager
    def device(self, wanted: torch.device) -> Any:
        before, self.current = self.current, str(wanted)
        yield
        self.current = before


def test_kernels_run_on_the_device_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current one, where another GPU's addresses mean nothing."""
    recorder, mlps = Recorder(), kernels.load("token_mlp.launch")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", recorder.device)
    config = problem.Config(16, 16, 16, 4, 2)
    with FakeTensorMode():
        x, weight = (torch.empty(size, device="cuda:1") for size in ((2, 1, 1, 4, 3), (4, 4)))
        launch.project(x, weight, 1, config, kernel=recorder)
        mlps.run(config, x[:, 0, 0], weight, None, "erf", weight, None, None, kernel=recorder)
    assert recorder.seen == ["cuda:1", "cuda:1"] and recorder.current == "cuda:0"


def test_a_build_for_a_gpu_measures_each_projection_at_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlpdeploy.graph.precision.plan import plan
    from mlpdeploy.graph.precision.typed import apply
    from mlpdeploy.graph.rewrite import rewrite
    from mlpdeploy.graph.tracing.trace import TensorSpec, trace
    from mlpdeploy.zoo.vip import VisionPermutator

    network = VisionPermutator((1,), (12,), (4,), (False,), patch_size=4, image_size=16, num_classes=10).eval()
    rewritten = rewrite(trace(network, [TensorSpec("input", (3, 16, 16), torch.float32)]))
    typed = apply(rewritten, plan(rewritten, "fp16"))
    measured: list[Any] = []
    known: list[Any] = []
    monkeypatch.setattr(launch, "is_tuned", lambda operands: shapes_of(operands) in known)
    monkeypatch.setattr(launch, "tune", lambda *given: measured.append(given))
    programs.tune(typed.module, 8)
    height, width = ((8, 4, 16, 3), (12, 12), 4), ((32, 4, 4, 3), (12, 12), 4)
    assert {shapes_of(operands) for operands, _ in measured} == {height, width}
    assert all(meaning is custom_ops.by_permuting for _, meaning in measured)
    assert all(operand.dtype is torch.float16 for operands, _ in measured for operand in operands[:2])
    measured.clear()
    known += [height, width]
    programs.tune(typed.module, 8)
    assert not measured


def shapes_of(operands: Any) -> tuple[Any, ...]:
    return tuple(tuple(one.shape) if isinstance(one, torch.Tensor) else one for one in operands)


def test_a_build_measures_epilogues_with_all_their_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlpdeploy.graph.precision.plan import plan
    from mlpdeploy.graph.precision.typed import apply
    from mlpdeploy.graph.rewrite import rewrite
    from mlpdeploy.graph.tracing.trace import TensorSpec, trace
    from mlpdeploy.zoo.vip import VisionPermutator

    network = VisionPermutator((1,), (12,), (4,), (False,), patch_size=4, image_size=16, num_classes=10).eval()
    traced = trace(network, [TensorSpec("input", (3, 16, 16), torch.float32)])
    rewritten = rewrite(traced, enabled=("fuse_epilogues", "hoist_reweighting"))
    typed = apply(rewritten, plan(rewritten, "fp16"))
    measured: list[Any] = []
    monkeypatch.setattr(launch, "is_tuned", lambda operands: False)
    monkeypatch.setattr(launch, "tune", lambda operands, meaning: measured.append(shapes_of(operands)))
    programs.tune(typed.module, 8)
    scaled = (None, None, (8, 1, 1, 12), (8, 4, 4, 12))
    added = (None, None, None, (8, 12))
    assert {*measured} == {
        ((8, 4, 16, 3), (12, 12), 4, *scaled), ((32, 4, 4, 3), (12, 12), 4, *scaled),
        ((8, 4, 4, 3), (3, 12), 1, *added),
    }  # fmt: skip
    for operands in measured:
        x, weight, segments, _, _, scale, accumulate = operands
        tensors = [None if one is None else torch.empty(one, device="meta", dtype=torch.float16)
                   for one in (x, weight, scale, accumulate)]  # fmt: skip
        epilogue = launch._flat(None, None, *tensors[2:])
        found = launch.describe(tensors[0], tensors[1], segments, **epilogue)
        assert (
            found.accumulate and found.channels == (12 if scale else 0) and found.share == (x[0] // 8 if scale else 1)
        )


def test_the_code_is_found_where_it_was_installed_too(tmp_path: Path) -> None:
    """A wheel has the folder of the plugins inside the package."""
    root = Path(__file__).parents[2]
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "mlpdeploy", tmp_path / "mlpdeploy", ignore=ignore)
    shutil.copytree(root / "plugins", tmp_path / "mlpdeploy" / "plugins", ignore=ignore)
    (elsewhere := tmp_path / "elsewhere").mkdir()
    code = """
from mlpdeploy import kernels
module = kernels.load("segment_grouped_projection.problem")
import mlpdeploy.plugins.segment_grouped_projection.problem as same
assert same is module
print(module.__name__, module.__file__, sep="\\n")
"""
    for folder, inside in ((tmp_path, tmp_path / "mlpdeploy"), (root, root)):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=elsewhere, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        name, file = done.stdout.splitlines()
        assert name == "mlpdeploy.plugins.segment_grouped_projection.problem"
        assert Path(file).is_relative_to(inside / "plugins")
