"""The TensorRT plugin against a stand-in of TensorRT's plugin API."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

pytest.importorskip("triton", reason="Triton, which compiles the plugin's kernel, is not installed")

from mlpdeploy import kernels
from tests.plugins.stand_in import Builder, Module
from tests.plugins.symbolic import DataType, SymInt32

plugin = kernels.load("segment_grouped_projection.plugin")
SHAPES = [(-1, 16, 256, 24), (1, 384, 384)]
"""x and the weight, which the ONNX file gives the rank that TensorRT wants."""


@pytest.fixture(scope="module")
def module() -> Module:
    made = Module()
    plugin.register(made, 90, "12.8")
    return made


def builder(module: Module, segments: int = 16, size: int = 24, tf32: bool = False) -> Builder:
    return Builder(module, f"{plugin.NAMESPACE}::{plugin.NAME}", plugin.attributes(segments, size, tf32))


def test_it_is_registered_once_under_the_name_of_the_onnx_function(module: Module) -> None:
    from mlpdeploy.engine.onnx.functions import Body
    from mlpdeploy.graph.custom_ops import DOMAIN

    assert [*module.registry] == [f"{DOMAIN}::{Body().name}"]
    with pytest.raises(ValueError, match="cannot be registered"):
        plugin.register(module, 90)


@pytest.mark.parametrize("dtype", list(DataType))
def test_its_output_has_the_shape_and_dtype_of_the_operation(module: Module, dtype: DataType) -> None:
    described = builder(module, 8, 48).output(SHAPES, dtype)
    assert described.dtype is dtype
    assert [[one.at(batch) for one in described.shape_expr] for batch in (1, 77)] == [[1, 8, 256, 48], [77, 8, 256, 48]]


@pytest.mark.slow
def test_a_trailing_axis_stays_last_and_its_weight_lies_as_pytorch_has_it(module: Module) -> None:
    """RaftMLP's first projection: (batch, 56, 56, 2, 32) to (batch, 1, 56, 224, 32)."""
    shapes, made = [(-1, 56, 56, 2, 32), (1, 1, 224, 112)], builder(module, 1, 224)
    described = made.output(shapes, DataType.HALF)
    assert [one.at(5) for one in described.shape_expr] == [5, 1, 56, 224, 32]
    given = plugin.problem(shapes[0], [0, 0, 1, 224], "HALF", [0], 8)
    assert (given.p, given.q, given.s, given.o, given.k, given.t) == (56, 56, 2, 32, 1, 224)
    assert not given.columns_first
    for tactic, config in enumerate(plugin.tactics(given, 90), 1):
        kernel = made.kernels(shapes, DataType.HALF, (1, 4, 8))[tactic]
        rows = math.ceil(3 * 56 * 32 / config.block_m)
        assert kernel.at(3)["grid_x"] == rows * math.ceil(224 / config.block_n)


@pytest.fixture(scope="module")
def half(module: Module) -> dict:
    return builder(module).kernels(SHAPES, DataType.HALF, (1, 32, 128))


@pytest.mark.slow
def test_tactics_are_distinct_kernels_within_shared_memory_that_needs_no_permission(half: dict) -> None:
    assert list(half) == list(range(1, len(half) + 1)) and 3 <= len(half) <= plugin.TACTICS
    assert len({kernel.ptx for kernel in half.values()}) == len(half)
    for kernel in half.values():
        launch = kernel.at(1)
        assert launch["shared_mem"] <= 48 << 10 and launch["block_x"] % 32 == 0
        assert f".entry {kernel.entry}(" in kernel.ptx and ".target sm_90a" in kernel.ptx
        version = re.search(r"^\.version (\d+)\.(\d+)", kernel.ptx, re.MULTILINE)
        assert version is not None and (int(version[1]), int(version[2])) <= (8, 7)


def test_the_launch_is_symbolic_in_the_batch(half: dict) -> None:
    """Tiles of rows times tiles of columns at any batch, from one compilation; the batch is the kernel's argument."""
    found = kernels.load("segment_grouped_projection.problem")
    given = plugin.problem((-1, 16, 256, 24), np.array([0, 0, 16, 24]), "HALF", np.array([0]), 128)
    for tactic, config in enumerate(plugin.tactics(given, 90), 1):
        for batch in (1, 2, 7, 128):
            launch = half[tactic].at(batch)
            rows, columns = math.ceil(batch * 256 / config.block_m), math.ceil(384 / config.block_n)
            assert launch["grid_x"] == rows * columns and launch["grid_y"] == launch["grid_z"] == 1
            assert launch["block_x"] == 32 * config.warps and launch["block_y"] == launch["block_z"] == 1
    (argument,) = half[1].arguments.items
    assert isinstance(argument, SymInt32) and [argument.at(batch) for batch in (1, 50)] == [1, 50]
    assert found.POINTERS[given.precision] == "*fp16" and given.columns_first


def test_the_kernel_takes_inputs_then_scalars_then_the_output(half: dict) -> None:
    entry = re.search(r"\.entry \w+\(([^)]*)\)", half[1].ptx)
    assert entry is not None and re.findall(r"\.param \.(\w+)", entry[1]) == ["u64", "u64", "u32", "u64"]


@pytest.mark.slow
def test_tf32_is_used_where_the_node_says_so(module: Module) -> None:
    shapes = [(-1, 4, 32, 8), (1, 32, 32)]
    for tf32 in (False, True):
        found = builder(module, 4, 8, tf32).kernels(shapes, DataType.FLOAT, (1, 2, 4))
        assert all(("tf32" in kernel.ptx) == tf32 for kernel in found.values())


def test_a_fixed_batch_and_a_huge_one(module: Module) -> None:
    fixed = builder(module, 4, 8).kernels([(3, 4, 32, 8), (1, 32, 32)], DataType.HALF, (3, 3, 3))
    assert fixed[1].at(3)["grid_x"] >= 1
    given = plugin.problem((-1, 16, 256, 24), [0, 0, 16, 24], "HALF", [0], 1 << 20)
    assert given.wide and not plugin.problem((-1, 16, 256, 24), [0, 0, 16, 24], "HALF", [0], 128).wide


def test_a_dimension_other_than_the_batch_must_be_known(module: Module) -> None:
    with pytest.raises(ValueError, match="positive"):
        builder(module).kernels([(-1, 16, -1, 24), (1, 384, 384)], DataType.HALF, (1, 2, 4))


def test_a_gpu_that_is_too_old_is_refused() -> None:
    module = Module()
    plugin.register(module, 75)
    with pytest.raises(ValueError, match=r"needs 8\.0"):
        builder(module).kernels(SHAPES, DataType.HALF, (1, 2, 4))
