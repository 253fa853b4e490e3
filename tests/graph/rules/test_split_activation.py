"""split_activation: a projection whose activated result is cut apart, and what looks like that and is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpdeploy.graph.rewrite import Rewritten
from tests.graph.proof import fired, prove_twice, reasons, targets
from tests.graph.rules.examples import Example, Gated, NearMiss, Net

aten = torch.ops.aten
Forward = Callable[[Net, Tensor], "Tensor | tuple[Tensor, ...]"]


def activated() -> nn.Module:
    """gMLP's gate."""
    return Gated(activated=True)


EXAMPLE = Example(activated, (6, 4), fires=1)


def uncut(result: Rewritten) -> bool:
    return not fired(result)["split_projection"] and not reasons(result, "split_projection")


def near_miss(run: Forward, *why: str, width: int = 8) -> NearMiss:
    return NearMiss(lambda: Net(run, fc=nn.Linear(6, width)), (4, 6), why, holds=uncut, twice=True)


NEAR_MISSES = {
    "the whole is used as well": near_miss(
        lambda m, x: (torch.mul(*(y := F.gelu(m.fc(x))).chunk(2, -1)), y), "the whole result is used as well"
    ),
    "split along another dimension": near_miss(lambda m, x: torch.mul(*F.gelu(m.fc(x)).chunk(2, 1))),
    "a softmax before the split": near_miss(lambda m, x: torch.mul(*m.fc(x).softmax(-1).chunk(2, -1))),
    "two activations meet before the split": near_miss(
        lambda m, x: torch.mul(*F.gelu(m.fc(x) + x).chunk(2, -1)), width=6
    ),
}


def gated(m: Net, x: Tensor) -> Tensor:
    u, v = F.gelu(m.fc(x)).chunk(2, -1)
    return u * v


def on_tokens(m: Net, x: Tensor) -> Tensor:
    u, v = F.silu(m.fc(x.transpose(1, 2)).transpose(1, 2)).chunk(2, 1)
    return u * v


SPLITS = {
    "channels": Net(gated, fc=nn.Linear(6, 8)),
    "no bias": Net(gated, fc=nn.Linear(6, 8, bias=False)),
    "tokens": Net(on_tokens, fc=nn.Linear(5, 8)),
}


@pytest.mark.parametrize("name", SPLITS)
def test_each_activated_part_has_its_projection(name: str) -> None:
    result = prove_twice(SPLITS[name], "split_activation", (5, 6))
    assert (fired(result)["split_activation"], fired(result)["split_projection"]) == (1, 0)
    found = targets(result)
    assert found[aten.linear.default] + found[aten.matmul.default] == 2
    assert not {aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default} & set(found)
