"""A network's numbers: what float32 cannot hold and what is no number is refused, naming the weight."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mlpdeploy
from mlpdeploy.errors import NetworkError
from mlpdeploy.network.sound import in_float32


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.norm(self.a(x)))
        return ((y[:, :, None] * y[:, None] + self.mask).softmax(-1) @ y[:, :, None])[:, :, 0]


def fill(name: str, value: float) -> Callable[[nn.Module], None]:
    def change(network: nn.Module) -> None:
        dict([*network.named_parameters(), *network.named_buffers()])[name].data[0] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (fill("a.weight", float("nan")), "a.weight of Net holds NaN or infinite values"),
        (fill("b.bias", float("inf")), "b.bias of Net holds NaN or infinite values"),
        (fill("mask", float("nan")), "mask of Net holds NaN or infinite values"),
        (fill("norm.running_var", float("inf")), "norm.running_var of Net holds NaN or infinite values"),
        (fill("a.weight", -1e300), "a.weight of Net holds -1e+300, which float32 cannot hold"),
        (fill("norm.running_mean", 1e39), "norm.running_mean of Net holds 1e+39, which float32 cannot hold"),
    ],
)
def test_what_cannot_be_used_is_named(change: Callable[[nn.Module], None], message: str) -> None:
    network = Net().double()
    change(network)
    with pytest.raises(NetworkError, match=message.replace("+", r"\+")) as caught:
        in_float32(copy.deepcopy(network))
    assert "\n" not in str(caught.value)
    with pytest.raises(NetworkError, match=message.replace("+", r"\+")):
        mlpdeploy.compile(network, torch.randn(2, 4).double(), precision="fp32", backend="onnxruntime")


@pytest.mark.slow
def test_masks_are_infinite_and_no_fault() -> None:
    network = Net().eval()
    network.constant = nn.Parameter(torch.tensor([-torch.inf]), requires_grad=False)
    assert in_float32(network) == () and torch.isinf(network.mask).any()
    engine = mlpdeploy.compile(network, torch.randn(2, 4), precision="fp32", backend="onnxruntime")
    assert engine.verify().passed and engine.manifest["notes"] == []


def test_numbers_that_become_0_are_told() -> None:
    network = Net().double().eval()
    network.b.bias.data[2] = 1e-300
    (note,) = in_float32(network)
    assert note == "b.bias of the network holds numbers so small that they are 0 in float32"


def test_complex_weights_stay_complex() -> None:
    network = nn.Module()
    network.weight = nn.Parameter(torch.randn(3, dtype=torch.complex64))
    before = network.weight.detach().clone()
    assert in_float32(network) == () and torch.equal(network.weight, before)
    network.weight.data[1] = complex(0, float("nan"))
    with pytest.raises(NetworkError, match="weight of Module"):
        in_float32(network)


def test_weights_without_numbers_are_left_to_others() -> None:
    network = nn.Linear(3, 3, device="meta")
    assert in_float32(network) == () and network.weight.is_meta


def test_a_network_whose_outputs_are_no_numbers_is_not_built() -> None:
    class Logs(Net):
        def forward(self, x: Tensor) -> Tensor:
            return (super().forward(x).relu() - 1).log()

    with pytest.raises(NetworkError, match=r"Logs gives NaN or infinity for ordinary rows .* log gives it first, in"):
        mlpdeploy.compile(Logs(), np.zeros((2, 4), np.float32), precision="fp32", backend="onnxruntime")
