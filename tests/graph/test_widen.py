"""The exact reference: in the float64 form of a traced network nothing is left in another precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlpdeploy.graph.rewrite import rewrite, rewrite_as
from mlpdeploy.graph.trace import TensorSpec, trace
from mlpdeploy.graph.widen import wide, widened

Forward = Callable[[nn.Module, Tensor], Tensor]


class Net(nn.Module):
    """`quirk` on tokens (b, 6, 8) between two linears; a matrix is kept where no conversion of a module finds it."""

    def __init__(self, quirk: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.quirk = quirk
        self.first, self.last, self.embedding = nn.Linear(8, 8), nn.Linear(8, 3), nn.Embedding(5, 8)
        self.matrix, self.several = torch.randn(6, 6), [torch.randn(8, 8), torch.randn(6, 1)]
        self.register_buffer("grid", torch.linspace(-1, 1, 6), persistent=False)
        self.spectrum = nn.Parameter(torch.randn(8, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.quirk(self, self.first(x)))


def _cosines() -> Tensor:
    return torch.cos(torch.arange(6)[:, None] * (torch.arange(6) + 0.5) * math.pi / 6)


QUIRKS: dict[str, Forward] = {
    "a plain attribute": lambda net, x: net.matrix @ x,
    "a list of tensors": lambda net, x: x @ net.several[0] + net.several[1],
    "a buffer that is not kept": lambda net, x: x * net.grid[:, None],
    "a matrix made in forward": lambda net, x: torch.eye(6) @ x + torch.ones(6, 8) / 3,
    "cosines of integers": lambda net, x: _cosines() @ x,
    "a window": lambda net, x: torch.einsum("btc,t->btc", x, torch.hann_window(6)),
    "a filter": lambda net, x: F.conv1d(x, torch.full((6, 1, 3), 1 / 3), padding=1, groups=6),
    "numbers of the batch's shape": lambda net, x: x + torch.linspace(0, 1, 8).expand(x.shape[0], 6, 8),
    "zeros of the batch's size": lambda net, x: torch.cat([x[:, :3], torch.zeros(x.shape[0], 3, 8) + 0.1], 1),
    "casts by name": lambda net, x: x.float() * x.to(torch.float32).softmax(-1, dtype=torch.float32),
    "rounds to half": lambda net, x: x.half().float() + x.to(torch.bfloat16),
    "integers divided": lambda net, x: x + (x > 0).sum(-1, keepdim=True) / 3,
    "a mean of booleans": lambda net, x: x * (x > 0).float().mean(1, keepdim=True),
    "a logarithm of integers": lambda net, x: x + (x > 0).sum(-1, keepdim=True).log1p(),
    "an embedding": lambda net, x: x + net.embedding((x > 0).sum(-1) % 5),
    "a mask": lambda net, x: x.masked_fill(torch.ones(6, 8).tril().bool(), 1e-3),
    "a spectrum": lambda net, x: torch.fft.ifft(torch.fft.fft(x) * net.spectrum).real,
    "a list of parts": lambda net, x: sum(x.float().chunk(2, 1)).repeat(1, 2, 1) * torch.tensor([0.1]),
}


@pytest.mark.parametrize("name", QUIRKS)
def test_everything_is_float64_and_the_rules_are_exact_on_it(name: str) -> None:
    network = Net(QUIRKS[name]).eval()
    traced = trace(network, [TensorSpec("x", (6, 8), torch.float32)])
    exact = widened(traced)
    assert [spec.dtype for spec in (*exact.inputs, *exact.outputs)] == [torch.float64] * 2
    for node in exact.module.graph.nodes:
        value = node.meta.get("val")
        assert not isinstance(value, Tensor) or value.dtype == wide(value.dtype), node
    x = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, (found,) = network(x), exact.module(x.double())
        (again,) = rewrite_as(exact, rewrite(traced)).module(x.double())
    assert found.dtype == again.dtype == torch.float64
    assert (ours - found).abs().max() / found.abs().max() < (1e-2 if "half" in name else 1e-5)
    assert (again - found).abs().max() / found.abs().max() < 1e-12


def test_the_traced_network_stays_as_it_is() -> None:
    traced = trace(Net(QUIRKS["a plain attribute"]).eval(), [TensorSpec("x", (6, 8), torch.float32)])
    before = str(traced.module.graph)
    widened(traced)
    assert str(traced.module.graph) == before
    assert {tensor.dtype for tensor in traced.module.state_dict().values()} <= {torch.float32, torch.complex64}
