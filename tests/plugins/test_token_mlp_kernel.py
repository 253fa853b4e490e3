"""The kernel for MLPs over tokens, without a GPU: what is in its PTX, what compilers see, and what a build measures."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton, which the kernel is written in, is not installed")

from mlpdeploy import kernels
from mlpdeploy.engine import programs
from mlpdeploy.graph.token_mlp import TOKEN_MLP, by_products
from tests.plugins import test_activated
from tests.plugins.test_compiled import TENSOR_CORES, instructions, resources, widths
from tests.plugins.test_operation import compiled_graph, kernel_calls, own_cache, pretended, shapes_of

__all__ = ["own_cache", "pretended"]

ahead: Any = kernels.load("token_mlp.ahead")
launch: Any = kernels.load("token_mlp.launch")
problem: Any = kernels.load("token_mlp.problem")
tuning: Any = kernels.load("common.tuning")
configurations: Any = kernels.load("common.configurations")
aten = torch.ops.aten

PARTS = {"up_bias": True, "down_bias": True, "residual": True}
B16 = problem.Problem(196, 384, 196, 768, "fp16", "erf", **PARTS, up_row=200)
S32 = problem.Problem(49, 256, 49, 512, "fp16", "erf", **PARTS, up_row=56)
ODD = problem.Problem(7, 33, 5, 21, "fp16", "tanh")
FP32 = {name: replace(S32, precision=name, up_row=52) for name in ("tf32", "fp32")}
SUMS = {"mma.sync": r"\.f32\.f16\.f16\.f32", "wgmma.mma_async": r"\.f32\.f16\.f16", "tcgen05.mma": r"kind::f16"}
"""How the instructions of tensor cores say that they sum in FP32; of `tcgen05` a descriptor does."""

REST = [pytest.param(sm, marks=pytest.mark.large) for sm in TENSOR_CORES if sm not in (80, 90, 120)]


def free_of_spills(given: Any, config: Any, sm: int, folder: Path) -> Any:
    """Compiled, without local memory and within the shared memory that was reckoned with."""
    made = ahead.compile_kernel(given, config, sm)
    used = resources(made.cubin, folder)
    assert used["STACK"] == used["LOCAL"] == 0 and not instructions(made.ptx)["local"], config
    assert made.shared <= given.shared(config) <= configurations.SHARED[sm], config
    return made


@pytest.mark.slow
@pytest.mark.parametrize("sm", [80, 90, 120, *REST])
def test_it_multiplies_on_tensor_cores_and_reads_and_writes_widely(sm: int, tmp_path: Path) -> None:
    """x, the padded matrices and the residual 16 bytes at a time; biases, of which a thread reads a few, at 2 to 8."""
    made = free_of_spills(B16, B16.default(128, sm), sm, tmp_path)
    found, kind = instructions(made.ptx), TENSOR_CORES[sm]
    assert found[kind] and re.search(re.escape(kind) + rf"\S*{SUMS[kind]}", made.ptx)
    assert widths(found, "load") <= {2, 4, 8, 16} and widths(found, "store") == {16}
    assert found["load 16"] > 5 * sum(found[f"load {width}"] for width in (2, 4, 8))


@pytest.mark.slow
def test_rows_of_196_numbers_would_be_read_8_bytes_at_a_time() -> None:
    config = configurations.Config(64, 256, 32, 4, 2)
    narrow, wide = (instructions(ahead.compile_kernel(one, config, 80).ptx) for one in (replace(B16, up_row=0), B16))
    assert narrow["load 8"] > wide["load 8"] and narrow["load 16"] < wide["load 16"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "tf32", pytest.param("fp32", marks=pytest.mark.large)])
def test_every_precision(precision: str, tmp_path: Path) -> None:
    given = replace(S32, precision=precision) if precision == "bf16" else FP32[precision]
    found = instructions(free_of_spills(given, given.default(128, 90), 90, tmp_path).ptx)
    # FP32 products are not formed on tensor cores: TF32 is asked for by name.
    assert bool(found["wgmma.mma_async"] + found["mma.sync"]) == (precision != "fp32")


@pytest.mark.large
@pytest.mark.parametrize("sm", TENSOR_CORES)
@pytest.mark.parametrize(
    "given", [B16, S32, ODD, replace(B16, precision="bf16"), replace(B16, precision="tf32", up_row=0), *FP32.values()],
    ids=lambda given: f"{given.precision} of {given.n}",
)  # fmt: skip
def test_no_candidate_spills(given: Any, sm: int, tmp_path: Path) -> None:
    for config in given.candidates(sm):
        free_of_spills(given, config, sm, tmp_path)


@pytest.mark.parametrize("full", [False, True])
def test_the_entry_takes_what_is_there_and_nothing_else(full: bool) -> None:
    """x, up, (up_bias,) down, (down_bias, residual,) the batch, y."""
    given = replace(ODD, **dict.fromkeys(PARTS, full))
    made = ahead.compile_kernel(given, configurations.Config(16, 16, 16, 4, 2), 80)
    entry = re.search(r"\.entry (\w+)\(([^)]*)\)", made.ptx)
    assert entry is not None and entry[1] == made.entry
    assert re.findall(r"\.param \.(\w+)", entry[2]) == ["u64"] * (6 if full else 3) + ["u32", "u64"]


def test_every_candidate_fits_and_the_unmeasured_choice_is_one() -> None:
    for sm, limit in configurations.SHARED.items():
        for given in (B16, S32, ODD, *FP32.values()):
            found = given.candidates(sm)
            assert found and len({*found}) == len(found)
            assert all(given.shared(config) <= limit for config in found)
            for batch in (1, 8, 128):
                assert given.default(batch, sm) in found and {*given.shortlist(batch, sm)} <= {*found}
    areas = [B16.default(batch, 90).block_m for batch in (1, 8, 128)]
    assert areas == sorted(areas) and areas[0] < areas[-1]


def test_what_fits_no_block_is_the_librarys() -> None:
    """1024 tokens fit where a block has 160 KiB and more."""
    large = problem.Problem(1024, 512, 1024, 96, "fp16", "erf")
    fits = {sm: bool(large.candidates(sm)) for sm in configurations.SHARED}
    assert fits == {80: True, 86: False, 89: False, 90: True, 100: True, 120: False}
    assert large.default(8, 89) is None and large.shortlist(8, 89) == () and tuning.choose(large, 8, 89) == "library"
    taken = tuning.timings(large, 8, 89, lambda choice: choice, lambda choice: 1.0)
    assert taken == {tuning.LIBRARY: 1.0}
    with pytest.raises(ValueError, match=r"7\.5: the kernel needs 8\.0"):
        large.default(8, 75)


def test_senseless_problems_are_refused() -> None:
    for bad, why in (({"n": 0}, "positive"), ({"precision": "fp64"}, "positive"), ({"gelu": None}, "by None")):
        with pytest.raises(ValueError, match=why):
            replace(B16, **bad)


def test_problems_that_compile_otherwise_are_measured_apart() -> None:
    others = [replace(B16, **{name: not value}) for name, value in PARTS.items()]
    others += [
        replace(B16, **change) for change in ({"gelu": "tanh"}, {"up_row": 0}, {"down_row": 392}, {"wide": True})
    ]
    others += [replace(B16, **{name: 64}) for name in "nhmc"] + [replace(B16, precision="bf16"), B16]
    assert len({one.shape_class(8) for one in others}) == len(others)
    assert B16.shape_class(5) == B16.shape_class(8) != B16.shape_class(9)
    assert all(name.startswith("token mlp") for name in (B16.shape_class(8), ODD.shape_class(1)))


class Mixed(torch.nn.Module):
    """An MLP over 384 tokens whose matrices are both `weight`, with the residual that it reads."""

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor]:
        bias = weight[0].reshape(-1, 1)
        return (torch.ops.mlpdeploy.token_mlp(x.sin(), weight, bias, "erf", weight, bias, x).cos(),)


SEEN = problem.Problem(384, 384, 384, 40, "fp16", "erf", **PARTS)


def test_compilers_see_one_kernel_whose_grid_is_symbolic_in_the_batch(pretended: None) -> None:
    graph = compiled_graph(shape=(384, 40), network=Mixed())
    (call,) = kernel_calls(graph)
    used, config = call.kwargs["kwargs"], SEEN.default(4, 90)
    assert [used[name] for name in "NHMC"] == [384, 384, 384, 40] and used["GELU"] == "erf"
    assert (used["BLOCK_C"], used["BLOCK_M"], used["BLOCK_H"]) == (config.block_m, 512, config.block_k)
    assert used["batch"].target is aten.sym_size.int and isinstance(call.kwargs["grid"][0][0], torch.fx.Node)
    left = {node.target for node in graph.nodes}
    assert not left & {aten.gelu.default, aten.add.Tensor, aten.mm.default, aten.bmm.default, aten.clone.default}


def test_addresses_are_wide_enough_for_every_batch_that_the_graph_allows(pretended: None) -> None:
    for largest, wide in ((64, False), (1 << 20, True), (None, True)):
        (call,) = kernel_calls(compiled_graph(shape=(384, 40), network=Mixed(), largest=largest))
        assert call.kwargs["kwargs"]["WIDE"] is wide


@pytest.mark.parametrize("why", ["measured", "too old", "another dtype", "does not fit"])
def test_where_the_kernel_does_not_serve_compilers_see_two_products(
    why: str, pretended: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype = torch.float64 if why == "another dtype" else torch.float16
    if why == "measured":
        tuning.remember({SEEN.shape_class(4): tuning.LIBRARY}, 90)
    if why == "too old":
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    if why == "does not fit":
        monkeypatch.setitem(configurations.SHARED, 90, 32 << 10)
    graph = compiled_graph(dtype, shape=(384, 40), network=Mixed())
    found = [node.target for node in graph.nodes]
    assert not kernel_calls(graph) and found.count(aten.bmm.default) == 2 and found.count(aten.gelu.default) == 1


@pytest.mark.parametrize(("precision", "rows"), [("fp16", (200, 16)), ("fp32", (196, 12))])
def test_a_build_pads_both_matrices_and_measures_the_mlp_at_its_batch(
    precision: str, rows: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of 196 and 12 numbers have 392 and 24 bytes in FP16; in FP32 they are whole vectors."""
    given = test_activated.typed(precision, "fuse_token_mlps")
    longer = programs.padded(given)
    x = torch.randn(3, 196, 8)
    with torch.no_grad():
        assert torch.equal(*(one.module(x)[0] for one in (given, longer)))
    measured: list[Any] = []
    monkeypatch.setattr(launch, "is_tuned", lambda operands: False)
    monkeypatch.setattr(launch, "tune", lambda operands, meaning: measured.append((operands, meaning)))
    programs.tune(longer.module, 32)
    ((operands, meaning),) = measured
    wanted = ((32, 196, 8), (12, rows[0]), (12, 1), "erf", (196, rows[1]), (196, 1), (32, 196, 8))
    assert meaning is by_products and shapes_of(operands) == wanted
    found = launch.describe(**launch._flat(*operands))
    assert (found.up_row, found.down_row) == ((200, 16) if precision == "fp16" else (0, 0))
    assert [node.target for node in longer.module.graph.nodes].count(TOKEN_MLP) == 1


def test_what_it_competes_with_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    for name, pretence in {"serves": lambda *_: True, "compute_capability": lambda _: 90, "drawn": lambda x: x}.items():
        monkeypatch.setattr(launch, name, pretence)
    monkeypatch.setattr(launch, "compiled", lambda *given: made.append(given) or (lambda: "compiled"))
    monkeypatch.setattr(launch, "run", lambda choice, **given: (choice, given["up_bias"].shape))
    operands = (torch.zeros(4, 7, 8), torch.zeros(5, 7), torch.zeros(5, 1), "erf", torch.zeros(7, 5), None, None)
    seconds = iter([1.0, *[2.0] * 20])
    monkeypatch.setattr(tuning, "seconds", lambda function: (function(), next(seconds))[1])
    assert not launch.is_tuned(operands)
    taken = launch.tune(operands, by_products)
    assert made == [(by_products, [*operands])] and len(taken) > 1
    assert tuning.fastest(taken) == tuning.LIBRARY
    assert launch.is_tuned(operands)


def test_nothing_is_dispatched_where_there_is_no_gpu() -> None:
    x, matrix = torch.randn(2, 4, 3), torch.randn(4, 4)
    assert launch.dispatch(x, matrix, None, "erf", matrix, None, None) is None
