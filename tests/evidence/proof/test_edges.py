"""Extreme rows on the ladder: an engine that is wrong there only is found, and one that is right is not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.runner import Arrays
from mlpdeploy.evidence.proof.edges import ORDINARY, Conditioning, edges_of, off_at
from mlpdeploy.evidence.proof.ladder import Extreme
from mlpdeploy.evidence.proof.runs import Outputs, Run, float64_run, module_run, shaken_run
from mlpdeploy.graph.precision.extremes import BLACK, CONSTANT, LARGE, ONE_HOT, WHITE, ZEROS
from mlpdeploy.graph.tracing.trace import TensorSpec

X = TensorSpec("x", (1, 2, 3), torch.float32, black=(-2.0,), white=(2.0,))
BATCH = Batch(1, 4, 16)
ORDINARIES = {"x": np.random.default_rng(3).standard_normal((3, 1, 2, 3), dtype=np.float32)}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x.flatten(1))))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False)


def found(
    network: nn.Module, engine: Callable[[Tensor], Tensor], batch: Batch = BATCH, precision: str = "fp32",
    budget: float = 1e-5, *, gated: bool = True,
) -> dict[str, Extreme]:  # fmt: skip
    """The worst that `engine` does for each row, beside the network in float64."""
    run = module_run(network, [X], ["y"], torch.float32)
    edges = edges_of(run, [X], 0, ORDINARIES)
    wide = copy.deepcopy(network).double()
    exact = edges.made_by(float64_run(wide, [X], ["y"]))

    def shaken(by: float) -> Run:
        return shaken_run(wide, [X], ["y"], by)

    factor = Conditioning(shaken, exact, lambda name: 1.0).at(precision) if gated else None
    sizes = []

    def engine_run(arrays: Arrays) -> Outputs:
        sizes.append(len(arrays["x"]))
        with torch.inference_mode():
            return {"y": engine(torch.from_numpy(arrays["x"])).numpy()}

    rows = off_at(engine_run, exact, batch, lambda name: 1.0, budget, factor)
    assert all(batch.min <= size <= batch.max for size in sizes)
    assert len({one.row for one in rows}) == len(rows)
    return {one.row: one for one in rows}


@pytest.mark.parametrize("batch", [Batch(1, 1, 1), Batch(1, 4, 16), Batch(5, 5, 5), Batch(20, 20, 20), Batch(2, 2, 3)])
def test_every_row_runs_in_batches_that_the_engine_takes(network: nn.Module, batch: Batch) -> None:
    rows = found(network, network, batch)
    assert set(rows) == {ORDINARY, ZEROS, CONSTANT, BLACK, WHITE, ONE_HOT, LARGE}
    assert all(one.passed and one.allowed == 1e-5 for one in rows.values())


def test_nan_where_the_network_is_finite_fails_with_the_rows_name(network: nn.Module) -> None:
    def divides(x: Tensor) -> Tensor:
        spread = x.flatten(1).std(1, keepdim=True)
        return network(x) * (spread / spread)

    rows = found(network, divides)
    assert {name for name, one in rows.items() if not one.passed} == {ZEROS, CONSTANT, BLACK, WHITE}
    assert rows[ZEROS].to_json() == {"row": ZEROS, "output": "y", "error": None, "allowed": 1e-5, "passed": False}


def test_a_wrong_answer_for_one_row_fails(network: nn.Module) -> None:
    for wrong, name in (
        (lambda x: torch.where((x.flatten(1) == -2).all(1, keepdim=True), 1.001, 1.0), BLACK),
        (lambda x: torch.where(x.flatten(1).abs().amax(1, keepdim=True) > 20, 1.001, 1.0), LARGE),
        (lambda x: torch.where((x.flatten(1) == 0).all(1, keepdim=True), 0.999, 1.0), ZEROS),
    ):
        rows = found(network, lambda x, wrong=wrong: network(x) * wrong(x))
        assert {row for row, one in rows.items() if not one.passed} == {name}


def test_an_ordinary_row_beside_extreme_ones_must_not_notice_them(network: nn.Module) -> None:
    def scales(x: Tensor) -> Tensor:
        return network(x) * (1 + 1e-3 * (x.abs().max() > 20))

    assert not found(network, scales)[ORDINARY].passed
    assert found(network, scales, Batch(1, 1, 1))[ORDINARY].passed


class Flat(nn.Module):
    """A normalisation of rows that may be flat: what is left of them is the rounding, 1 / sqrt(epsilon) as large."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.b = nn.Linear(6, 16), nn.Linear(16, 4)
        self.mix.weight.data = self.mix.weight.data[:1].expand(16, 6).clone()
        self.mix.bias.data.fill_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        mixed = self.mix(x) + nn.functional.pad(x, (0, 10)) * (x.amax(1, keepdim=True) != x.amin(1, keepdim=True))
        return self.b(nn.functional.layer_norm(mixed, (16,), eps=1e-12))


def rounded(network: nn.Module, by: float) -> Callable[[Tensor], Tensor]:
    """Another right engine: every operation a rounding off, in another way than those that are measured."""
    run = shaken_run(copy.deepcopy(network).double(), [X], ["y"], by, seed=1234)
    return lambda x: torch.from_numpy(run({"x": x.numpy()})["y"]).float()


@pytest.mark.parametrize(("precision", "by", "budget"), [("fp32", 2.0**-24, 1e-5), ("fp16", 2.0**-11, 6e-3)])
def test_what_is_worse_conditioned_in_the_network_itself_may_be_further_off(
    precision: str, by: float, budget: float
) -> None:
    torch.manual_seed(0)
    network = Flat().eval().requires_grad_(False)
    rows = found(network, rounded(network, by), precision=precision, budget=budget)
    assert all(one.passed for one in rows.values())
    assert rows[CONSTANT].error > 3 * budget and rows[CONSTANT].allowed > rows[CONSTANT].error
    assert rows[ORDINARY].error < budget and rows[ONE_HOT].allowed == budget


def test_that_is_no_excuse_for_the_other_rows() -> None:
    torch.manual_seed(0)
    network = Flat().eval().requires_grad_(False)
    wrong = rounded(network, 2.0**-24)
    rows = found(network, lambda x: wrong(x) * 1.001)
    assert not rows[ONE_HOT].passed and not rows[LARGE].passed and not rows[ORDINARY].passed


def test_without_a_factor_extreme_rows_only_have_to_be_finite(network: nn.Module) -> None:
    """INT8 holds for what it was calibrated on."""
    rows = found(network, lambda x: network(x).clamp(-0.1, 0.1), gated=False)
    assert all(one.allowed is None and one.passed for name, one in rows.items() if name != ORDINARY)
    assert not rows[ORDINARY].passed
    rows = found(network, lambda x: network(x) / (x.flatten(1).abs().sum(1, keepdim=True) != 0), gated=False)
    assert not rows[ZEROS].passed


class Log(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.flatten(1).abs().sum(1, keepdim=True).log()


def test_where_the_network_itself_is_not_finite_nothing_is_compared() -> None:
    network = Log().eval().requires_grad_(False)
    rows = found(network, lambda x: network(x).nan_to_num())
    assert ZEROS not in rows and rows[BLACK].passed


class Table(Net):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.table((2 * x[:, 0, 0, 0].abs()).long())


def test_a_row_on_which_the_network_raises_is_left_out() -> None:
    network = Table().eval().requires_grad_(False)
    edges = edges_of(module_run(network, [X], ["y"], torch.float32), [X], 0, ORDINARIES)
    assert LARGE not in edges.names and len(edges.rows["x"]) == len(edges.names) == 7
    (note,) = edges.notes()
    assert note == f"the network itself raises IndexError for the row {LARGE!r}: nothing is asked of an engine there"
    assert all(one.passed for one in found(network, network).values())


def test_rows_that_tie_are_not_held_against_an_engine_that_decides_otherwise() -> None:
    """Which of equal numbers is the largest is decided by rounding."""

    class Best(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            best = (x * 0.1 + 1).argmax(1, keepdim=True)
            return x.sum(1, keepdim=True) + best * torch.arange(4)

    def last(x: Tensor) -> Tensor:
        x = x.flatten(1)
        best = 5 - (x * 0.1 + 1).flip(1).argmax(1, keepdim=True)
        return x.sum(1, keepdim=True) + best * torch.arange(4)

    rows = found(Best().eval(), last)
    assert all(one.passed for one in rows.values())
    assert all(rows[name].error > 0.5 for name in (ZEROS, CONSTANT, BLACK, WHITE))
    wrong = found(Best().eval(), lambda x: last(x) + torch.arange(4))
    assert {name for name, one in wrong.items() if not one.passed} == {ORDINARY, ONE_HOT, LARGE}
