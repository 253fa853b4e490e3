"""Regions of a graph that torch.export keeps apart: `no_grad`, `autocast`, and those that no engine has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mlpdeploy.errors import NetworkError
from mlpdeploy.graph.tracing.place import network_of
from mlpdeploy.graph.tracing.trace import trace
from tests.graph.proof import prove, specs


class Mixing(nn.Module):
    """Two token mixings in a region of `how`, which stands between two others; the mean is its second result."""

    def __init__(self, *how: torch.autocast | torch.no_grad | torch.enable_grad) -> None:
        super().__init__()
        self.how = how
        self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(4, 3)
        self.ladder = torch.arange(6.0)

    def mix(self, x: Tensor, how: tuple[torch.no_grad, ...]) -> Tensor:
        if how:
            with how[0]:
                return self.mix(x, how[1:]) + torch.eye(4, dtype=x.dtype)[0]
        return self.second(self.first(x.transpose(1, 2)).relu()).transpose(1, 2) * self.ladder[:, None].to(x.dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with self.how[0]:
            mixed, mean = self.mix(x + 1, self.how[1:]), x.mean(1)
        return self.last(mixed), mean + mixed.mean(1)


REGIONS = {
    "no_grad": (torch.no_grad(),),
    "enable_grad": (torch.enable_grad(),),
    "autocast that is off": (torch.autocast("cpu", enabled=False),),
    "one in another": (torch.enable_grad(), torch.autocast("cpu", enabled=False), torch.no_grad()),
}


@pytest.mark.parametrize("name", REGIONS)
def test_a_region_becomes_a_part_of_the_graph(name: str) -> None:
    result = prove(Mixing(*REGIONS[name]), (6, 4))
    assert {node.op for node in result.module.graph.nodes} == {"placeholder", "get_attr", "call_function", "output"}
    assert {"first", "second", "last"} <= {network_of(node) for node in result.module.graph.nodes}


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_an_autocast_of_a_gpu_does_nothing_on_the_cpu() -> None:
    prove(Mixing(torch.autocast("cuda", torch.float16)), (6, 4))


def test_an_autocast_that_is_on_is_refused_with_its_place() -> None:
    network = nn.Sequential(nn.Identity(), Mixing(torch.autocast("cpu", torch.bfloat16)))
    with pytest.raises(NetworkError, match=r"asks for torch.autocast in torch.bfloat16 .*module '1'") as raised:
        trace(network, specs([(6, 4)]))
    assert "test_regions.py, line" in str(raised.value)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.first, x, use_reentrant=False)


def test_a_checkpointed_part_is_the_part() -> None:
    prove(Checkpointed(), (6, 4))


class Chooses(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))


def test_a_choice_between_two_graphs_is_refused_with_its_place() -> None:
    with pytest.raises(NetworkError, match=r"cond.*module '0'.*test_regions.py, line \d+"):
        trace(nn.Sequential(Chooses()), specs([(6, 4)]))
