"""The range pass sees rows that are not ordinary, and each for what it is there for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.ranges import measure
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from tests.graph.low_precision import kept, traced


class Brightness(nn.Module):
    """The mean of an image of 80 x 80 pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.mean((1, 2, 3)))[:, None]


@pytest.mark.parametrize(("white", "found"), [((2.6,) * 3, {"mean"}), ((1.0,) * 3, set())])
def test_a_white_image_overflows_a_sum_that_noise_leaves_at_0(white: tuple[float, ...], found: set[str]) -> None:
    spec = TensorSpec("x", (3, 80, 80), torch.float32, black=(-1.0,) * 3, white=white)
    planned = plan(rewrite(trace(Brightness(), [spec])), "fp16")
    assert {one.node.split("_")[0] for one in planned.kept} == found


def test_a_row_a_hundred_times_larger_counts_for_overflow_alone() -> None:
    assert kept(lambda net, x: x.sin()) == {}
    assert "reaches" in kept(lambda net, x: net.first(x * x * x))["mul"]


def test_infinity_is_a_number_that_fp16_has() -> None:
    assert kept(lambda net, x: x.masked_fill(x < 0, float("inf")).clamp(max=3.0)) == {}


def test_given_rows_count_beside_random_ones() -> None:
    rewritten = traced(lambda net, x: x.abs())[1]

    def largest(samples: Mapping[str, np.ndarray] | None) -> float:
        return max(measure(rewritten, samples, ()).usual.values.values())

    assert largest({"x": np.full((1, 8), 50.0, np.float32)}) == 50.0
    assert largest({"x": np.zeros((1, 8), np.float32)}) == largest(None) > 1.0


class Silenced(nn.Module):
    """A product that is far below zero, of which GELU leaves nothing; over channels, or over tokens."""

    def __init__(self, number: float, tokens: bool) -> None:
        super().__init__()
        self.tokens, self.up, self.down = tokens, nn.Linear(8, 8), nn.Linear(8, 8)
        with torch.no_grad():
            self.up.weight.fill_(number)

    def forward(self, x: Tensor) -> Tensor:
        x = x.abs() + 5
        y = self.down(F.gelu(self.up(x.transpose(1, 2) if self.tokens else x)))
        return y.transpose(1, 2) if self.tokens else y


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize(("number", "kept"), [(-0.2, False), (-2000.0, True)])
def test_an_epilogue_is_judged_by_the_projection_in_front_of_it(number: float, kept: bool, tokens: bool) -> None:
    """FP16 would have infinity there, of which GELU is no number, although what it leaves is 0."""
    before = trace(Silenced(number, tokens).eval(), [TensorSpec("x", (8, 8), torch.float32)])
    planned = plan(rewrite(before, enabled=["activate_projections"]), "fp16")
    assert any("epilogue" in one.node and "reaches" in one.reason for one in planned.kept) == kept
