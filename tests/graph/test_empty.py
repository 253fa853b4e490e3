"""Networks in which a tensor has no elements, as where a split leaves nothing to one of its parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpdeploy.graph.rewrite import for_kernel
from tests.graph.proof import prove

Run = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run, self.w = run, nn.Parameter(torch.randn(7, 7))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def _split(net: Net, x: Tensor) -> Tensor:
    mixed, left = x.split([7, 0], 1)
    return torch.cat([net.w @ mixed, left], 1).transpose(1, 2)


NETWORKS: dict[str, Run] = {
    "a part of a split": _split,
    "a product without channels": lambda net, x: (net.w @ x[..., :0]).sum(-1) + x.sum(),
    "a product of no tokens": lambda net, x: net.w[:, :0] @ x[:, :0] + x.sum(),
    "a product to no tokens": lambda net, x: torch.cat([net.w[:0] @ x, x], 1),
    "a linear of no tokens": lambda net, x: F.linear(F.gelu(F.linear(x[:, :0], net.w)), net.w).sum() + x.sum((1, 2)),
    "a linear to nothing": lambda net, x: F.linear(F.gelu(F.linear(x, net.w[:0])), net.w[:, :0]) + x,
    "another shape": lambda net, x: torch.cat(
        [x[..., :0].reshape(x.shape[0], 0, 4).transpose(1, 2).reshape(x.shape[0], -1), x.flatten(1)], 1
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_has_no_elements_computes_the_same(name: str) -> None:
    prove(Net(NETWORKS[name]), (7, 7), batches=(1, 2, 5), enabled=for_kernel())
