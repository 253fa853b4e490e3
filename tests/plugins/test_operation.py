"""The operation on a GPU, without one: what compilers see of it, when the kernel serves, and what was measured."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mlpdeploy import kernels
from mlpdeploy.engine.backends import _programs
from mlpdeploy.graph import ops

triton = pytest.importorskip("triton", reason="Triton, which the kernel is written in, is not installed")

launch: Any = kernels.load("segment_grouped_projection.launch")
tuning: Any = kernels.load("segment_grouped_projection.tuning")
problem: Any = kernels.load("segment_grouped_projection.problem")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tuning._remembered.cache_clear()
    yield
    tuning._remembered.cache_clear()


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


def compiled_graph(
    dtype: torch.dtype = torch.float16, trailing: tuple[int, ...] = (), largest: int | None = 64
) -> torch.fx.Graph:
    """What AOTAutograd, which torch.compile and AOTInductor share, makes of the operation on a GPU."""
    from torch._functorch.aot_autograd import aot_export_module

    with FakeTensorMode(), torch.no_grad():
        x = torch.empty(4, 16, 16, 24, *trailing, device="cuda", dtype=dtype)
        weight = torch.empty(384, 384, device="cuda", dtype=dtype)
        batch = torch.export.Dim("batch", min=1, max=largest)
        program = torch.export.export(Network(), (x, weight), dynamic_shapes=({0: batch}, None))
    assert ops.SEGMENT_GROUPED_PROJECTION in [node.target for node in program.graph.nodes]
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"]
    with values[0].fake_mode, torch.no_grad():
        return aot_export_module(program.module(check_guards=False), values, trace_joint=False)[0].graph


def kernel_calls(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    return [node for node in graph.nodes if "triton_kernel_wrapper" in str(node.target)]


@pytest.mark.parametrize("trailing", [(), (3,)])
def test_compilers_see_the_kernel_and_its_grid_is_symbolic_in_the_batch(
    pretended: None, trailing: tuple[int, ...]
) -> None:
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table

    graph = compiled_graph(trailing=trailing)
    (call,) = kernel_calls(graph)
    config = problem.default(problem.Problem(16, 16, 24, *(trailing or (1,)), 16, 24, "fp16"), 4, 90)
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
    got = ops.segment_grouped_projection(x, weight, 4)
    assert got.is_contiguous()
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(ops.SEGMENT_GROUPED_PROJECTION, (x, weight, 4), test_utils=tests)


GIVEN = problem.Problem(16, 16, 24, 1, 16, 24, "fp16")


def test_the_fastest_is_remembered_by_shape_class_and_gpu() -> None:
    tried: list[Any] = []
    wanted = problem.shortlist(GIVEN, 32, 90)[3]

    def seconds(choice: Any) -> float:
        tried.append(choice)
        if choice == problem.shortlist(GIVEN, 32, 90)[1]:
            raise RuntimeError("out of resource: shared memory")
        return 1.0 if choice == wanted else 2.0

    taken = tuning.timings(GIVEN, 32, 90, lambda choice: choice, seconds)
    assert tuning.fastest(taken) == wanted and len(taken) == len(tried) - 1 and tuning.LIBRARY in taken
    for batch in (32, 17):  # 17 to 32 are one class
        assert tuning.choose(GIVEN, batch, 90) == wanted
    for other in ((GIVEN, 33, 90), (GIVEN, 32, 80)):
        assert tuning.remembered(*other) is None and tuning.choose(*other) == problem.default(*other)
    assert tuning.remembered(problem.Problem(16, 16, 24, 1, 16, 24, "bf16"), 32, 90) is None


def test_choices_add_up_in_a_file_and_damage_is_forgotten() -> None:
    config = problem.Config(16, 32, 64, 4, 2)
    tuning.remember({"a": config}, 90)
    tuning.remember({"b": tuning.LIBRARY}, 90)
    path = tuning.file(90)
    assert tuning._read(path) == {"a": config, "b": tuning.LIBRARY} and len(list(path.parent.iterdir())) == 1
    for damage in ("", "{", "[]", '{"a": 3}', json.dumps({"a": {"block_m": 16}})):
        path.write_text(damage)
        tuning._remembered.cache_clear()
        assert tuning.choose(GIVEN, 1, 90) == problem.default(GIVEN, 1, 90)


def test_a_cache_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    tuning.remember({"a": tuning.LIBRARY}, 90)
    assert tuning.choose(GIVEN, 1, 90) == problem.default(GIVEN, 1, 90)


def test_a_build_for_a_gpu_measures_each_projection_at_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlpdeploy.graph.precision import apply, plan
    from mlpdeploy.graph.rewrite import rewrite
    from mlpdeploy.graph.trace import TensorSpec, trace
    from mlpdeploy.zoo.vip import VisionPermutator

    network = VisionPermutator((1,), (12,), (4,), (False,), patch_size=4, image_size=16, num_classes=10).eval()
    rewritten = rewrite(trace(network, [TensorSpec("input", (3, 16, 16), torch.float32)]))
    typed = apply(rewritten, plan(rewritten, "fp16"))
    measured: list[Any] = []
    known: list[Any] = []
    monkeypatch.setattr(launch, "is_tuned", lambda *given: given[0] in known)
    monkeypatch.setattr(launch, "tune", lambda *given: measured.append(given))
    _programs.tune(typed.module, 8)
    height, width = ((8, 4, 16, 3), (12, 12), 4, torch.float16), ((32, 4, 4, 3), (12, 12), 4, torch.float16)
    assert {given[:4] for given in measured} == {height, width}
    assert all(given[4] is ops.by_permuting for given in measured)
    measured.clear()
    known += [height[0], width[0]]
    _programs.tune(typed.module, 8)
    assert not measured


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
