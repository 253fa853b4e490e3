"""Products from the left whose rows begin between two vectors: our operation, in engines for a GPU alone."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import fx, nn

from mlpdeploy import kernels
from mlpdeploy.engine import programs
from mlpdeploy.graph import custom_ops
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import Typed, apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from tests.conftest import REPOSITORY
from tests.plugins.test_operation import compiled_graph, kernel_calls, own_cache, pretended

pytest.importorskip("triton", reason="Triton, which the kernel is written in, is not installed")

__all__ = ["own_cache", "pretended"]

launch: Any = kernels.load("segment_grouped_projection.launch")
problem: Any = kernels.load("segment_grouped_projection.problem")
tuning: Any = kernels.load("common.tuning")
aten = torch.ops.aten


class Tokens(nn.Module):
    """ResMLP's product over tokens, its bias, and its residual, of tokens in one axis or two."""

    def __init__(self, tokens: int = 196, outputs: int = 196) -> None:
        super().__init__()
        self.mixed = nn.Linear(tokens, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mixed(x.transpose(-1, -2)).transpose(-1, -2) + x.sum()


def typed(network: nn.Module, shape: tuple[int, ...] = (196, 8), precision: str = "fp16") -> Typed:
    rewritten = rewrite(trace(network.eval(), [TensorSpec("x", shape, torch.float32)]))
    return apply(rewritten, plan(rewritten, precision))


def ours(given: Typed) -> list[fx.Node]:
    return [node for node in given.module.graph.nodes if node.target is custom_ops.SEGMENT_GROUPED_PROJECTION]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("shape", [(196, 8), (3, 196, 8)], ids=str)
def test_rows_of_196_numbers_are_our_kernels_and_stored_as_200(shape: tuple[int, ...], precision: str) -> None:
    given = typed(Tokens(), shape, precision)
    before = str(given.module.graph)
    carried = programs.for_gpu(given)
    (node,) = ours(carried)
    assert str(given.module.graph) == before and not ours(given)
    assert tuple(node.args[1].meta["val"].shape) == (196, 200) and node.args[0].meta["val"].dim() == 3
    assert not [node for node in carried.module.graph.nodes if node.target is aten.matmul.default]
    x = torch.randn(2, *shape)
    with torch.no_grad():
        torch.testing.assert_close(*(one.module(x)[0] for one in (given, carried)), rtol=0, atol=0)
    measured: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "is_tuned", lambda operands: False)
        patch.setattr(launch, "tune", lambda operands, meaning: measured.append(operands))
        programs.tune(carried.module, 4)
    ((seen, weight, segments),) = measured
    assert (tuple(seen.shape), tuple(weight.shape), segments) == ((12 if len(shape) == 3 else 4, 196, 8), (196, 200), 1)
    wanted = problem.Problem(1, 1, 196, 8, 1, 196, precision, pitch=200)
    assert launch.describe(seen, weight, segments) == wanted


class Computed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ x.transpose(1, 2)) @ x


@pytest.mark.parametrize(
    ("network", "precision"),
    [(Tokens(outputs=7), "fp32"), (nn.Linear(8, 196), "fp16"), (Computed(), "fp16")],
    ids=["in FP32 they are whole vectors", "a linear", "no constant matrix"],
)
def test_what_is_left_to_the_library(network: nn.Module, precision: str) -> None:
    assert not ours(programs.for_gpu(typed(network, precision=precision)))


def test_whole_vectors_are_left_to_the_library() -> None:
    assert not ours(programs.for_gpu(typed(Tokens(200, 49), (200, 8))))


class Left(nn.Module):
    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor]:
        return (torch.ops.mlpdeploy.segment_grouped_projection(x, weight, 1).sin(),)


def test_compilers_see_the_kernel_on_x_as_it_lies(pretended: None) -> None:
    graph = compiled_graph(shape=(380, 8), network=Left())
    (call,) = kernel_calls(graph)
    used = call.kwargs["kwargs"]
    assert (used["S"], used["O"], used["WEIGHT_ROW"]) == (380, 8, 384) and used["x"].op == "placeholder"


def test_where_the_library_was_faster_it_is_one_product_and_nothing_is_copied(pretended: None) -> None:
    known = problem.Problem(1, 1, 380, 8, 1, 384, "fp16", pitch=384)
    tuning.remember({known.shape_class(4): tuning.LIBRARY}, 90)
    found = [node.target for node in compiled_graph(shape=(380, 8), network=Left()).nodes]
    assert "triton_kernel_wrapper" not in str(found)
    assert found.count(aten.clone.default) == 0 and found.count(aten.bmm.default) == 1


def test_the_meaning_of_three_axes() -> None:
    x, weight = torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    longer = torch.nn.functional.pad(weight, (0, 3))
    for matrix in (weight, longer):
        torch.testing.assert_close(custom_ops.segment_grouped_projection(x, matrix, 1), weight @ x)
    bias, residual = torch.randn(1, 1, 4, 1).double(), torch.randn(2, 4, 3).double()
    for accumulate in (None, residual):
        got = custom_ops.segment_grouped_projection_epilogue(x, longer, 1, bias, "erf", None, accumulate)
        wanted = torch.nn.functional.gelu(weight @ x + bias[0, 0]) + (0 if accumulate is None else residual)
        torch.testing.assert_close(got, wanted)
    with pytest.raises(ValueError, match="into 2 segments"):
        launch.describe(x, weight, 2)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(custom_ops.SEGMENT_GROUPED_PROJECTION, (x, weight, 1), test_utils=tests)


CODE = """
import json

import torch
from torch import nn

from benchmarks.inductor_structure import generated, ours
from mlpdeploy.engine import programs
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from tests.plugins.test_carried import Tokens


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.channels = Tokens(), nn.Linear(64, 64, bias=False)

    def forward(self, x):
        y = x + self.channels(x)  # two tensors, which its other reader would read again
        return (y + self.tokens.mixed(y.transpose(1, 2)).transpose(1, 2)).relu()


typed, shape = ours(trace(Residual().eval(), [TensorSpec("x", (196, 64), torch.float32)]))[0], (4, 196, 64)
forms = {"library": programs.channels_last(typed), "kernel": programs.for_gpu(typed)}
print(json.dumps({name: generated(one.module, [shape]) for name, one in forms.items()}))
"""


@pytest.mark.slow
def test_what_the_kernel_reads_is_computed_once_for_all_its_readers() -> None:
    """In Inductor's code for a GPU: as many bytes move around the kernel as around the library's product."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = subprocess.run([sys.executable, "-c", CODE], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["library"]["calls"] == {"mm": 1, "bmm": 1}
    assert found["kernel"]["calls"] == {"mm": 1, "our kernel": 1}
    assert found["kernel"]["kernels"] == found["library"]["kernels"]
    assert found["kernel"]["bytes"]["kernels"] == found["library"]["bytes"]["kernels"]


def test_products_of_integers_are_left_to_libraries(pretended: None) -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.ones(7, 7, dtype=torch.int32), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.table @ (x > 0).int()).float()

    carried = programs.for_gpu(typed(Counts(), (7, 4)))
    assert not ours(carried)


def test_a_kernel_that_takes_no_integers_is_not_measured_for_them(pretended: None) -> None:
    graph = fx.Graph()
    x, table = (graph.placeholder(name) for name in ("x", "table"))
    node = graph.call_function(custom_ops.SEGMENT_GROUPED_PROJECTION, (x, table, 1))
    x.meta["val"] = node.meta["val"] = torch.ones(2, 7, 4, dtype=torch.int32)
    table.meta["val"] = torch.ones(7, 7, dtype=torch.int32)
    graph.output(node)
    programs.tune(fx.GraphModule(nn.Module(), graph), 2)
