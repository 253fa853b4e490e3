"""MLPs over channels and tokens in our operation: what a build measures, what compilers see, what the kernel reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mlpdeploy import kernels
from mlpdeploy.engine import programs
from mlpdeploy.graph import custom_ops
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import Typed, apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from tests.plugins.test_compiled import TENSOR_CORES, instructions, widths
from tests.plugins.test_operation import compiled_graph, kernel_calls, own_cache, pretended, shapes_of

__all__ = ["own_cache", "pretended"]

ahead: Any = kernels.load("segment_grouped_projection.ahead")
launch: Any = kernels.load("segment_grouped_projection.launch")
problem: Any = kernels.load("segment_grouped_projection.problem")
tuning: Any = kernels.load("common.tuning")
aten = torch.ops.aten

CHANNELS = problem.Problem(1, 1, 192, 1, 1, 768, "fp16", bias=True, gelu="erf")
PADDED = problem.Problem(1, 1, 196, 192, 1, 384, "fp16", bias=True, gelu="tanh", pitch=200)
TOKENS = problem.Problem(1, 1, 196, 192, 1, 384, "fp16", bias=True, gelu="tanh")


class Block(nn.Module):
    """Mixer's block over 196 tokens, by erf over tokens and by tanh over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Sequential(nn.Linear(196, 12), nn.GELU(), nn.Linear(12, 196))
        self.channels = nn.Sequential(nn.Linear(8, 24), nn.GELU("tanh"), nn.Linear(24, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        return x + self.channels(x)


def typed(precision: str = "fp16", rule: str = "activate_projections") -> Typed:
    rewritten = rewrite(trace(Block().eval(), [TensorSpec("x", (196, 8), torch.float32)]), enabled=[rule])
    return apply(rewritten, plan(rewritten, precision))


def test_a_build_measures_both_mlps_at_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Any] = []
    monkeypatch.setattr(launch, "is_tuned", lambda operands: False)
    monkeypatch.setattr(launch, "tune", lambda *given: measured.append(given))
    programs.tune(typed().module, 32)
    over_tokens = ((32, 1, 1, 196, 8), (12, 196), 1, (1, 1, 12, 1), "erf", None, None)
    over_channels = ((32 * 196, 1, 1, 8), (24, 8), 1, (1, 1, 24), "tanh", None, None)
    assert [shapes_of(operands) for operands, _ in measured] == [over_tokens, over_channels]
    assert all(meaning is custom_ops.by_permuting for _, meaning in measured)
    assert all(
        one.dtype is torch.float16 for operands, _ in measured for one in operands if isinstance(one, torch.Tensor)
    )


@pytest.mark.parametrize(
    ("shape", "following"), [((6, 1, 1, 4), 3 * [None]), ((2, 1, 1, 4, 3), [])], ids=["epilogue", "none"]
)
def test_the_kernel_competes_with_what_inductor_makes(
    shape: tuple[int, ...], following: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which permutes, and launches bias and GELU, at once; step by step they would lose to a slower kernel."""
    operands = (
        torch.randn(shape),
        torch.randn(5, 4),
        1,
        *([torch.randn(1, 1, 5), "erf", None, None] if following else []),
    )
    made: list[Any] = []
    monkeypatch.setattr(launch, "serves", lambda *tensors: True)
    monkeypatch.setattr(launch, "compute_capability", lambda device: 90)
    monkeypatch.setattr(launch, "drawn", lambda like: like)
    monkeypatch.setattr(
        launch, "compiled", lambda function, given: made.append((function, given)) or (lambda: "compiled")
    )
    runs: dict[str, Any] = {}
    monkeypatch.setattr(
        tuning, "timings", lambda problem, batch, sm, run, time: runs.update(library=run(tuning.LIBRARY))
    )
    launch.tune(operands, lambda *given: "step by step")
    assert runs["library"]() == "compiled"
    assert [given for _, given in made] == [[*operands]]


@pytest.mark.slow
def test_what_inductor_makes_is_the_meaning() -> None:
    operands = torch.randn(2, 1, 1, 7, 3), torch.randn(5, 7), 1, torch.randn(1, 1, 5, 1), "tanh", None, None
    wanted = custom_ops.by_permuting(*operands)
    got = launch.compiled(custom_ops.by_permuting, operands)()
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


class Activated(nn.Module):
    def __init__(self, bias: tuple[int, ...], gelu: str) -> None:
        super().__init__()
        self.bias, self.gelu = bias, gelu

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor]:
        run = torch.ops.mlpdeploy.segment_grouped_projection_epilogue
        return (run(x, weight, 1, weight[0].reshape(self.bias), self.gelu, None, None).sin(),)


FORMS = {
    "channels": ((1, 1, 384), (1, 1, 384), "tanh"),
    "tokens": ((1, 1, 384, 8), (1, 1, 384, 1), "erf"),
    "padded": ((1, 1, 380, 8), (1, 1, 384, 1), "erf"),
}
"""x without its batch, bias and GELU of a linear, of a product from the left, and of one with longer rows of 384."""


@pytest.mark.parametrize(("shape", "bias", "gelu"), FORMS.values(), ids=FORMS)
def test_compilers_see_gelu_in_the_kernel(
    pretended: None, shape: tuple[int, ...], bias: tuple[int, ...], gelu: str
) -> None:
    graph = compiled_graph(shape=shape, network=Activated(bias, gelu))
    (call,) = kernel_calls(graph)
    used = call.kwargs["kwargs"]
    assert (used["GELU"], used["P"], used["Q"], used["K"], used["S"], used["T"]) == (gelu, 1, 1, 1, shape[2], 384)
    assert used["WEIGHT_ROW"] == 384
    assert not {node.target for node in graph.nodes} & {
        aten.gelu.default,
        aten.add.Tensor,
        aten.mm.default,
        aten.bmm.default,
    }


@pytest.mark.parametrize(("shape", "bias", "gelu"), FORMS.values(), ids=FORMS)
def test_where_the_library_was_faster_nothing_is_moved(
    pretended: None, shape: tuple[int, ...], bias: tuple[int, ...], gelu: str
) -> None:
    """The product from the left stays one: to permute its operand would be what Inductor itself does not do."""
    (s, *o), t = shape[2:], 384
    known = problem.Problem(1, 1, s, *(o or [1]), 1, t, "fp16", bias=True, gelu=gelu, pitch=384 * (s != 384))
    tuning.remember({known.shape_class(4): tuning.LIBRARY}, 90)
    found = [node.target for node in compiled_graph(shape=shape, network=Activated(bias, gelu)).nodes]
    assert "triton_kernel_wrapper" not in str(found) and found.count(aten.gelu.default) == 1
    assert found.count(aten.clone.default) == 0 and found.count(aten.bmm.default if o else aten.mm.default) == 1


@pytest.mark.slow
@pytest.mark.parametrize("sm", [80, 90, 120])
@pytest.mark.parametrize("given", [CHANNELS, TOKENS, PADDED], ids=["channels", "tokens", "padded"])
def test_it_runs_on_tensor_cores_and_reads_and_writes_widely(given: Any, sm: int) -> None:
    """Rows of 196 numbers of a weight are read 8 bytes at a time, unless they are padded; all else 16 at a time."""
    found = instructions(ahead.compile_kernel(given, problem.Config(128, 128, 32, 4, 3), sm).ptx)
    assert found[TENSOR_CORES[sm]] and not found["local"] and widths(found, "store") == {16}
    assert widths(found, "load") - {2, 4} == ({8, 16} if given is TOKENS else {16})


@pytest.mark.parametrize(("precision", "length"), [("fp16", 200), ("fp32", 196)])
def test_rows_of_196_numbers_are_padded_where_that_begins_a_vector(precision: str, length: int) -> None:
    """In FP32 they have 784 bytes, which are whole vectors; the graph computes the same, and the other one is left."""
    given = typed(precision)
    before, state = str(given.module.graph), {*given.module.state_dict()}
    longer = programs.padded(given)
    assert str(given.module.graph) == before and {*given.module.state_dict()} == state
    nodes = [node for node in longer.module.graph.nodes if node.target is custom_ops.WITH_EPILOGUE]
    shapes = [tuple(node.args[1].meta["val"].shape) for node in nodes]
    assert shapes == [(12, length), (24, 8)]
    x = torch.randn(3, 196, 8)
    with torch.no_grad():
        assert torch.equal(*(one.module(x)[0] for one in (given, longer)))
    measured: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "is_tuned", lambda operands: False)
        patch.setattr(launch, "tune", lambda operands, meaning: measured.append(operands))
        programs.tune(longer.module, 4)
    assert tuple(measured[0][1].shape) == (12, length)
    assert launch.describe(*measured[0][:3]).pitch == (200 if length == 200 else 0)


def test_the_two_kinds_of_gelu_are_measured_apart_and_others_are_refused() -> None:
    names = [problem.Problem(1, 1, 8, 1, 1, 8, "fp16", gelu=gelu).shape_class(4) for gelu in problem.GELUS]
    assert PADDED.shape_class(4) != TOKENS.shape_class(4)
    assert len({*names}) == 3 and set(problem.GELUS) == {None, *custom_ops.GELUS}
    with pytest.raises(ValueError, match="by erf or by tanh, not by none"):
        problem.Problem(1, 1, 8, 1, 1, 8, "fp16", gelu="none")
