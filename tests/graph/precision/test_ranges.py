"""The range pass sees rows that are not ordinary, and each for what it is there for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
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
