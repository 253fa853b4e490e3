"""A network that is no function of a row, or not its trace, is blamed itself, before any stage of ours."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import onnx
import pytest
import torch
from torch import Tensor, nn

from mlpdeploy.evidence.proof.ladder import ALONE, EMITTED, ENGINE, REWRITTEN, SIZES, TRACED, TWICE, TYPED
from mlpdeploy.graph.precision.typed import Typed
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import trace
from tests.evidence.proof.cases import Case, Net, X, run_with


class Itself:
    """Cases of networks that no engine can be right about, each with what was made of it."""

    @staticmethod
    def of(network: nn.Module) -> Case:
        network = network.eval().requires_grad_(False)
        rewritten = rewrite(trace(network, [X]))
        typed = Typed(rewritten.module, "fp32", rewritten.inputs, rewritten.outputs)
        return Case(network, rewritten, typed, onnx.ModelProto(), run_with(network))


class Draws(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e-8 * torch.rand(7)


class Mixes(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + 1e-7 * y.mean(0)


class MixesLargeOnes(Net):
    """Rows do not notice each other unless one is far larger."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / x.abs().max().clamp_min(50))


class Seven(Net):
    """Another network for batches of 11."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.where(torch.tensor(x.shape[0] == 11), 2.0, 1.0)


class Counts(Net):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * (1 + 1e-6 * self.calls)


@pytest.mark.parametrize(
    ("kind", "rung", "line"),
    [
        (Draws, TWICE, "rand draws random numbers, in module '(root)' (test_first_rungs.py, line"),
        (Counts, TWICE, "keep nothing from one call to the next"),
        (Mixes, ALONE, "lets a row depend on the others in its batch"),
        (MixesLargeOnes, ALONE, "for the row 'an ordinary one beside them'"),
        (Seven, SIZES, "tensor depends on the number of rows, in module '(root)'"),
    ],
)
def test_a_network_that_is_no_function_of_a_row_is_blamed_itself(kind: type[nn.Module], rung: str, line: str) -> None:
    """However little: a rewritten graph is held to 1e-9 too, and is not what is wrong."""
    torch.manual_seed(0)
    found = replace(Itself.of(Net()), network=kind().eval().requires_grad_(False)).verify()
    assert found.first_failed is not None and found.first_failed.name == rung and line in found.verdict()
    assert not {stage.name for stage in found.stages} & {REWRITTEN, TYPED, EMITTED, ENGINE}
    assert any("the rest of the ladder was not climbed" in note for note in found.notes)
    json.dumps(found.to_json(), allow_nan=False)


def test_a_trace_that_is_not_the_networks_is_blamed_itself(case: Case) -> None:
    other = copy.deepcopy(case.network)
    other.head.bias.data[0] += 1e-6
    found = case.verify(traced=trace(other, [X]))
    assert found.first_failed is not None and found.first_failed.name == TRACED
    assert "Net computes something else than its trace" in found.verdict()
