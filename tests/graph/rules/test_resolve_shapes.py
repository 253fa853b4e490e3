"""Operands that lend their shape or dtype only: `view_as`, `expand_as` and their like, in graphs that mix tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlpdeploy.engine.onnx.emit import emit
from mlpdeploy.graph.kinds import SPLITS
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.rewrite import Rewritten
from tests.graph.proof import aten, prove, targets
from tests.graph.rules.examples import Example, NearMiss, Spectra

Forward = Callable[[nn.Module, Tensor], Tensor]

EXAMPLE = Example(Spectra, (6, 4), fires=1)

LENDERS = {aten.view_as.default, aten.reshape_as.default, aten.expand_as.default, aten.type_as.default}


class Net(nn.Module):
    """Token mixing, then `quirk` on tokens (b, 6, 4), then token mixing again."""

    def __init__(self, quirk: Forward) -> None:
        super().__init__()
        self.quirk = quirk
        self.first, self.last, self.gate = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(4, 4)
        self.register_buffer("count", torch.arange(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.transpose(1, 2)).transpose(1, 2)
        return self.last(self.quirk(self, x).transpose(1, 2)).transpose(1, 2)


def near_miss(quirk: Forward, holds: Callable[[Rewritten], bool] | None = None) -> NearMiss:
    return NearMiss(lambda: Net(quirk), (6, 4), holds=holds)


def _cut(result: Rewritten) -> bool:
    return bool(SPLITS & set(targets(result))) or aten.unbind.int not in targets(result)


NEAR_MISSES = {
    "a shape in numbers": near_miss(lambda net, x: net.gate(x).flatten(1).reshape(-1, 6, 4)),
    "expanded to numbers": near_miss(lambda net, x: x * net.gate(x.mean(1)).unsqueeze(1).expand(-1, 6, -1)),
    "parts of an axis that is known": near_miss(lambda net, x: torch.cat(net.gate(x).chunk(2, 1)[::-1], 1), holds=_cut),
    "parts of several sizes of a batch": near_miss(
        lambda net, x: torch.cat([x, x.flip(1), x * 2]).split([x.shape[0] * 2, x.shape[0]])[1]
    ),
}

QUIRKS: dict[str, Forward] = {
    "view as": lambda net, x: net.gate(x).flatten(1).view_as(x),
    "reshape as another": lambda net, x: x.transpose(1, 2).reshape_as(net.gate(x)),
    "expand as": lambda net, x: x * net.gate(x.mean(1)).unsqueeze(1).expand_as(x),
    "expand with a batch of one": lambda net, x: x + net.gate.weight.sum(0).view(1, 1, 4).expand_as(x),
    "expand as itself": lambda net, x: x.expand_as(x) + 1,
    "more dimensions": lambda net, x: net.gate.bias.expand_as(x) * x,
    "normalise": lambda net, x: F.normalize(x, dim=1),
    "cosine": lambda net, x: F.cosine_similarity(x, x.flip(1), dim=-1)[..., None] * x,
    "type as": lambda net, x: x + net.count.type_as(x)[:, None],
    "batch and tokens folded": lambda net, x: net.gate(x.reshape(-1, 4)).view_as(x),
    "a shape of twice the batch": lambda net, x: (
        torch.cat([x, x]).reshape(-1, 4).view_as(torch.cat([x, x]))[: x.shape[0]]
    ),
}


def twice(x: Tensor) -> Tensor:
    """A batch and its mirror image behind each other."""
    return torch.cat([x, x.flip(1)])


PARTS: dict[str, Forward] = {
    "halves": lambda net, x: torch.stack(net.gate(twice(x)).chunk(2)).mean(0),
    "as many as the batch": lambda net, x: torch.mul(*net.gate(twice(x)).split(x.shape[0])),
    "of sizes": lambda net, x: torch.mul(*net.gate(twice(x)).split([x.shape[0]] * 2)),
    "along another axis": lambda net, x: torch.mul(*net.gate(twice(x)).transpose(0, 1).chunk(2, -2)).transpose(0, 1),
    "halves of halves": lambda net, x: twice(twice(x)).chunk(2)[1].chunk(2)[0],
    "one that is read": lambda net, x: net.gate(twice(x)).chunk(2)[1],
    "all in one": lambda net, x: net.gate(x).split(x.shape[0])[0],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_parts_of_a_batch_become_an_axis(name: str) -> None:
    found = prove(Net(PARTS[name]), (6, 4))
    assert not SPLITS & set(targets(found))
    emit(apply(found, plan(found, "fp32")))


@pytest.mark.parametrize("name", QUIRKS)
def test_what_lends_its_shape_goes(name: str) -> None:
    assert not LENDERS & set(targets(prove(Net(QUIRKS[name]), (6, 4))))


@pytest.mark.parametrize("name", QUIRKS)
def test_without_the_rule_the_layout_pass_leaves_it_alone(name: str) -> None:
    prove(Net(QUIRKS[name]), (6, 4), disabled={"resolve_shapes"})
