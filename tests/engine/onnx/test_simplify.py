"""Simplifications change no number: what is nearly 0 or nearly 1 stays."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from mlpdeploy.graph.tracing.trace import TensorSpec
from tests.engine.onnx.test_emit import emitted, infer


class Protected(nn.Module):
    """What keeps a divisor, a logarithm and a product from being exactly 0 or 1, by less than 1e-8 in each."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        deviation = x - x.mean(-1, keepdim=True)
        scaled = deviation / ((deviation * deviation).mean(-1, keepdim=True).sqrt() + 1e-8)
        apart = (x.relu() - 1e-9).reciprocal()
        return scaled, torch.log(x.relu() + 1e-9), apart


def test_an_addition_of_1e_8_stays() -> None:
    """Of a flat row the deviation is 0, of a dark one the logarithm's argument."""
    model = emitted(Protected(), TensorSpec("x", (4,), torch.float32)).model
    rows = np.stack([np.zeros(4, np.float32), np.full(4, 0.5, np.float32), np.arange(4, dtype=np.float32)])
    for found, wanted in zip(infer(model, x=rows), Protected()(torch.from_numpy(rows)), strict=True):
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5)


class Nearly(nn.Module):
    """Products with and quotients by what is nearly 1, beside exact ones, which may go."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("near", torch.tensor(1 + 2**-20, dtype=torch.float32))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x * self.near - x, x / self.near - x, (x * 1.0 + 0.0) / 1.0


def test_a_factor_near_1_stays() -> None:
    model = emitted(Nearly(), TensorSpec("x", (4,), torch.float32)).model
    rows = np.arange(1, 9, dtype=np.float32).reshape(2, 4)
    for found, wanted in zip(infer(model, x=rows), Nearly()(torch.from_numpy(rows)), strict=True):
        assert np.array_equal(found, wanted.numpy())


def test_a_convolution_without_a_bias_is_known_by_its_module() -> None:
    """Leaving out the zeros that the exporter gives it makes another node, which the engine's check finds by name."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 5, 1, bias=False))
    model = emitted(network, TensorSpec("x", (3, 4, 4), torch.float32)).model
    assert [node.name for node in model.graph.node if node.op_type == "Conv"] == ["0/Conv", "2/Conv"]
