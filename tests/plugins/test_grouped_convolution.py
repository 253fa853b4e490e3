"""Convolutions of groups: their spellings, which of them are our operation for a GPU, and what compilers see of it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from mlpdeploy import kernels
from mlpdeploy.engine import programs
from mlpdeploy.engine.grouped import grouped
from mlpdeploy.graph.grouped_convolution import GROUPED_CONVOLUTION, by_convolving
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import Typed, apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from tests.conftest import REPOSITORY
from tests.plugins.test_operation import compiled_graph, own_cache, pretended

pytest.importorskip("triton", reason="Triton, which the kernels are written in, is not installed")

__all__ = ["own_cache", "pretended"]

kernel: Any = kernels.load("grouped_convolution.kernel")
launch: Any = kernels.load("grouped_convolution.launch")
problem: Any = kernels.load("grouped_convolution.problem")
tuning: Any = kernels.load("common.tuning")
aten = torch.ops.aten


@st.composite
def convolutions(draw: Any) -> tuple[Any, ...]:
    """x, weight, taps, bias, stride, padding, dilation, groups; of one dimension or two."""
    rank, groups = draw(st.integers(1, 2)), draw(st.integers(1, 4))
    each, outputs, batch = (draw(st.integers(1, 3)) for _ in range(3))
    lists = [[draw(st.integers(low, high)) for _ in range(rank)] for low, high in ((1, 4), (1, 3), (0, 2), (1, 2))]
    places, stride, padding, dilation = lists
    size = [apart * (k - 1) + draw(st.integers(1, 5)) for k, apart in zip(places, dilation, strict=True)]
    x = torch.randn(batch, groups * each, *size, dtype=torch.float64)
    x = x.to(memory_format=torch.channels_last) if rank == 2 and draw(st.booleans()) else x
    weight = torch.randn(groups * outputs, each, *places, dtype=torch.float64)
    bias = torch.randn(groups * outputs, dtype=torch.float64) if draw(st.booleans()) else None
    return x, weight, weight.flatten(1).t().contiguous(), bias, stride, padding, dilation, groups


@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(convolutions())
def test_both_spellings_are_the_convolution(operands: tuple[Any, ...]) -> None:
    x, weight, taps, *rest = operands
    wanted = by_convolving(*operands)
    for spelled in kernel.SPELLED.values():
        torch.testing.assert_close(spelled(x, weight.shape[2:], taps, *rest), wanted)


@pytest.mark.parametrize("name", ["sums", "products"])
def test_numbers_that_are_not_finite_stay_where_they_are_and_half_precision_is_rounded_once(name: str) -> None:
    operands = [torch.randn(2, 4, 5, 9), torch.randn(6, 2, 1, 7), None, torch.randn(6), [1, 1], [0, 3], [1, 1], 2]
    operands[0][0, 0, 0, 0], operands[0][1, 3, 2, 2] = torch.inf, torch.nan  # type: ignore[index]
    operands[2] = operands[1].flatten(1).t()  # type: ignore[union-attr]
    x, weight, taps, *rest = operands
    got = kernel.SPELLED[name](x, (1, 7), taps, *rest)
    wanted = by_convolving(*operands)  # type: ignore[arg-type]
    assert torch.equal(got.isfinite(), wanted.isfinite())
    half = [one.half() if isinstance(one, Tensor) else one for one in (x.nan_to_num(0, 1, -1), weight, taps, *rest)]  # type: ignore[union-attr]
    exact = by_convolving(*(one.double() if isinstance(one, Tensor) else one for one in half))  # type: ignore[arg-type]
    found = kernel.SPELLED[name](half[0], (1, 7), *half[2:])
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.double(), exact, rtol=2e-3, atol=4e-3)


class Grouped(nn.Module):
    """What wavemlp has: two channels a group, along the width."""

    def __init__(self, convolution: nn.Module | None = None) -> None:
        super().__init__()
        self.convolution = convolution or nn.Conv2d(8, 4, (1, 7), padding=(0, 3), groups=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x.sin()) + 1


class Computed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, x.mean((0, 2, 3)).reshape(4, 2, 1, 1), groups=4)


def typed(network: nn.Module, shape: tuple[int, ...] = (8, 5, 9), precision: str = "fp16") -> Typed:
    rewritten = rewrite(trace(network.eval(), [TensorSpec("x", shape, torch.float32)]))
    return apply(rewritten, plan(rewritten, precision))


def ours(given: Typed) -> list[fx.Node]:
    return [node for node in given.module.graph.nodes if node.target is GROUPED_CONVOLUTION]


@pytest.mark.parametrize(
    ("convolution", "shape"),
    [
        (None, (8, 5, 9)),
        (nn.Conv2d(4, 8, 2, stride=2, groups=4), (4, 6, 6)),
        (nn.Conv2d(6, 6, 3, padding="same", groups=2, bias=False), (6, 5, 5)),
        (nn.Conv2d(6, 9, 3, padding="valid", dilation=2, groups=3), (6, 5, 7)),
        (nn.Conv1d(6, 4, 5, padding=2, groups=2), (6, 9)),
        (nn.Conv1d(6, 4, 1, groups=2), (6, 9)),
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_convolutions_of_groups_are_our_operation(
    convolution: nn.Module | None, shape: tuple[int, ...], precision: str
) -> None:
    before = typed(Grouped(convolution), shape, precision)
    text = str(before.module.graph)
    after = programs.for_gpu(before)
    (node,) = ours(after)
    assert str(before.module.graph) == text and not ours(before)
    weight, taps = (after.module.get_parameter(node.args[place].target) for place in (1, 2))
    assert taps.is_contiguous() and tuple(taps.shape) == (weight[0].numel(), len(weight))
    assert weight.dim() == 3 or weight.is_contiguous(memory_format=torch.channels_last)
    for batch in (1, 3):
        x = torch.randn(batch, *shape)
        with torch.no_grad():
            torch.testing.assert_close(after.module(x)[0], before.module(x)[0])


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (Grouped(nn.Conv2d(8, 8, 3, groups=8)), (8, 5, 9)),
        (Grouped(nn.Conv2d(8, 4, 3)), (8, 5, 9)),
        (Grouped(nn.Conv2d(8, 4, 2, padding="same", groups=4)), (8, 5, 9)),
        (Grouped(nn.Conv3d(8, 4, 1, groups=4)), (8, 2, 5, 9)),
        (Grouped(nn.ConvTranspose2d(8, 4, 3, groups=4)), (8, 5, 9)),
        (Computed(), (8, 5, 9)),
    ],
    ids=["depthwise", "no groups", "more on one side", "of volumes", "transposed", "no constant kernel"],
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_others_are_left_to_the_library(network: nn.Module, shape: tuple[int, ...]) -> None:
    assert not ours(grouped(typed(network, shape)))


class Seen(nn.Module):
    """Two channels a group: 4 groups of a map of 8 channels."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.depth = depth

    def forward(self, x: Tensor, weight: Tensor) -> tuple[Tensor]:
        kernel, taps = weight[:4, : 7 * self.depth].reshape(4, self.depth, 1, 7), weight[: 7 * self.depth, :4]
        return (torch.ops.mlpdeploy.grouped_convolution(x, kernel, taps, None, [1, 1], [0, 3], [1, 1], 4).relu(),)


GIVEN = problem.Problem(8, 4, 4, (5, 9), (1, 7), (1, 1), (0, 3), (1, 1), "fp16")


@pytest.mark.parametrize(
    ("choice", "wanted", "without"),
    [
        ("sums", aten.constant_pad_nd.default, {aten.convolution.default, aten.bmm.default}),
        ("products", aten.bmm.default, {aten.convolution.default}),
        ("library", aten.convolution.default, {aten.bmm.default, aten.constant_pad_nd.default}),
        ("nonsense", aten.constant_pad_nd.default, {aten.convolution.default}),
    ],
)
def test_compilers_see_what_was_measured(pretended: None, choice: str, wanted: Any, without: set[Any]) -> None:
    """What is no spelling was never measured."""
    assert GIVEN.candidates(90) == ("sums",)
    known = GIVEN if choice != "products" else problem.Problem(40, 4, 4, *(GIVEN.size, *CONVOLVED), "fp16")
    tuning.remember({known.shape_class(4): choice}, 90)
    network = Seen() if choice != "products" else Seen(depth=10)
    graph = compiled_graph(shape=(known.channels, 5, 9), network=network)
    targets = {node.target for node in graph.nodes}
    assert wanted in targets and not targets & without


CONVOLVED = ((1, 7), (1, 1), (0, 3), (1, 1))


def test_each_problem_has_a_spelling_and_a_name_of_its_own() -> None:
    names = set()
    sizes = itertools.product((2, 8, 30, 128), (1, 2), ((1, 7), (3, 3), (1, 1)))
    for each, outputs, places in sizes:
        one = problem.Problem(4 * each, 4 * outputs, 4, (9, 9), places, (1, 1), (0, 0), (1, 1), "fp16")
        found = one.candidates(90)
        assert found and set(found) <= kernel.SPELLED.keys() and one.default(1, 90) == found[0]
        assert ("products" in found) == (one.depth >= 16) and ("sums" in found) == (one.depth <= 32)
        names |= {one.shape_class(8), one.shape_class(9)}
    assert len(names) == 48


def test_a_build_measures_each_spelling_as_inductor_compiles_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Callable[..., Tensor], Any]] = []

    def compiled(function: Callable[..., Tensor], operands: Any) -> Callable[[], Any]:
        made.append((function, operands))
        return lambda: function(*operands)

    def timings(given: Any, batch: int, sm: int, run: Any, time: Any) -> dict[str, Tensor]:
        return {choice: run(choice)() for choice in (tuning.LIBRARY, *given.shortlist(batch, sm))}

    for name, one in {"compiled": compiled, "drawn": torch.rand_like, "compute_capability": lambda device: 90}.items():
        monkeypatch.setattr(launch, name, one)
    monkeypatch.setattr(tuning, "timings", timings)
    operands = [torch.empty(2, 32, 5, 9), torch.empty(4, 8, 1, 3), torch.empty(24, 4), None, [1, 1], [0, 1], [1, 1], 4]
    found = launch.tune(operands, by_convolving)
    assert [*found] == ["library", "sums", "products"] and {one.shape for one in found.values()} == {(2, 4, 5, 9)}
    for _, (x, weight, *_) in made:
        assert all(one.is_contiguous(memory_format=torch.channels_last) for one in (x, weight))


def test_numbers_that_no_kernel_computes_are_left_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a network that has FP64 by itself: nothing is measured, and nothing raised."""
    module = fx.GraphModule(nn.Module(), fx.Graph())
    values = [torch.empty(2, 8, 5, 9).double(), torch.empty(4, 2, 1, 7).double(), torch.empty(14, 4).double()]
    nodes = [module.graph.placeholder(name) for name in "xwt"]
    for node, value in zip(nodes, values, strict=True):
        node.meta["val"] = value
    module.graph.call_function(GROUPED_CONVOLUTION, (*nodes, None, [1, 1], [0, 3], [1, 1], 4))
    monkeypatch.setattr(launch, "is_tuned", None)
    programs.tune(module, 2)
    assert launch.dispatch(*values, None, [1, 1], [0, 3], [1, 1], 4) is None


CODE = """
import json
import torch
from torch import nn
from benchmarks.inductor_structure import generated
from mlpdeploy.engine import programs
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
network = nn.Sequential(
    nn.Conv2d(8, 16, 3), nn.GELU(), nn.Conv2d(16, 8, (1, 7), padding=(0, 3), groups=8), nn.ReLU(), nn.Conv2d(8, 8, 1)
)
rewritten = rewrite(trace(network.eval(), [TensorSpec("x", (8, 14, 14), torch.float32)]))
typed = apply(rewritten, plan(rewritten, "fp16", io="fp16"))
plain = programs.channels_last(typed)
print(json.dumps([generated(one.module, [(4, 8, 14, 14)]) for one in (plain, programs.for_gpu(typed))]))
"""


@pytest.mark.slow
def test_inductor_makes_one_kernel_of_a_sum_and_of_what_stands_behind_it() -> None:
    """It reads the map as often as the kernel of the convolution does: GELU in front of it is computed once."""
    done = subprocess.run([sys.executable, "-c", CODE], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    plain, spelled = json.loads(done.stdout)
    assert spelled["calls"]["convolution"] == plain["calls"]["convolution"] - 1
    assert spelled["kernels"] == plain["kernels"]
    total = [sum(one["bytes"].values()) for one in (plain, spelled)]
    assert total[1] < total[0]
