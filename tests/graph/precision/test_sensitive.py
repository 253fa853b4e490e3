"""What FP16 and BF16 do not know well enough: large angles and places on grids, and how far back FP32 goes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace

LAYOUT = "propagate_layout"


class Net(nn.Module):
    """`forward_` on points (b, 4) in [0, 1), with square linears over 4 elements whose weights are all 1."""

    def __init__(self, forward_: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.forward_ = forward_
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.grid = nn.Parameter(torch.randn(1, 2, 8, 8))
        nn.init.ones_(self.first.weight)
        nn.init.ones_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_(self, x)


def kept(forward: Callable[[Net, Tensor], Tensor], precision: str = "fp16") -> dict[str, str]:
    """What the plan keeps in FP32: the operation and the reason, in order."""
    # No rule runs, so that the graph is the network as it is written.
    names = ("fold_affine", LAYOUT)
    result = rewrite(trace(Net(forward), [TensorSpec("x", (4,), torch.float32, 0.0, 1.0)]), names)
    nodes = {node.name: str(node.target.overloadpacket) for node in result.module.graph.nodes if callable(node.target)}
    return {nodes[found.node].removeprefix("aten."): found.reason for found in plan(result, precision).kept}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("wave", [torch.sin, torch.cos])
def test_a_large_angle_and_what_computes_it(wave: Callable[[Tensor], Tensor], precision: str) -> None:
    found = kept(lambda net, x: net.second(wave(net.first(20 * x) + 1).relu()), precision)
    assert list(found) == ["mul", "linear", "add", wave.__name__]
    assert found[wave.__name__].startswith("reads an angle of ")
    assert found["linear"].startswith("computes an angle of ")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_an_angle_of_less_than_a_turn_stays(precision: str) -> None:
    assert kept(lambda net, x: net.second((2 * math.pi * x).sin()), precision) == {}


def test_what_comes_before_another_activation_stays() -> None:
    found = kept(lambda net, x: (50 * net.second(torch.relu(net.first(x)))).sin())
    assert list(found) == ["linear", "mul", "sin"]


def test_only_one_product_back() -> None:
    found = kept(lambda net, x: (50 * net.second(net.first(x).unflatten(1, (2, 2)).flatten(1) * 2)).sin())
    assert list(found).count("linear") == 1
    assert "unflatten" in found


def test_pointwise_operations_before_the_product_belong_to_the_angle() -> None:
    found = kept(lambda net, x: (30 * (net.first(x).abs() + 1) * net.first(x).exp()).sin())
    assert set(found) == {"mul", "add", "abs", "exp", "linear", "sin"}


def test_places_on_a_grid() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        places = x[:, :2].reshape(1, -1, 1, 2) * 2 - 1
        return F.grid_sample(net.grid, places, align_corners=True).reshape(-1, 2) * x[:, 2:]

    found = kept(forward)
    assert "reshape" in found
    assert found["grid_sampler"] == "reads places on a grid"
    assert found["sub"] == "computes places on a grid"


def test_full_precision_keeps_nothing() -> None:
    assert kept(lambda net, x: (100 * x).sin(), "fp32") == {}
    assert kept(lambda net, x: (100 * x).sin(), "tf32") == {}
