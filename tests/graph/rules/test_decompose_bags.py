"""decompose_bags: bags that all hold as many ids, and those that are told, weighted or padded otherwise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.proof import aten, fired, prove, targets
from tests.graph.rules.examples import Example, NearMiss

Forward = Callable[["Bags", Tensor], Tensor]


class Bags(nn.Module):
    """The mean of the vectors of three ids, or `run` on the ids, each 0, 1 or 2."""

    def __init__(self, run: Forward | None = None, mode: str = "mean") -> None:
        super().__init__()
        self.run, self.bag, self.head = run, nn.EmbeddingBag(3, 4, mode=mode), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        ids = (x.clamp(-1, 1) + 1).to(torch.int64)
        return self.head(self.run(self, ids) if self.run else self.bag(ids))


EXAMPLE = Example(Bags, (3,), fires=1)

OFFSETS = "its bags are told by offsets that are not equally far apart"
OPTIONS = "its bags are weighted, padded or closed by an offset"


def near_miss(run: Forward, *why: str) -> NearMiss:
    return NearMiss(lambda: Bags(run), (3,), why)


def _closed(net: Bags, ids: Tensor) -> Tensor:
    ends = torch.arange(0, ids.shape[0] * 3 + 1, 3)
    return F.embedding_bag(ids.flatten(), net.bag.weight, ends, mode="sum", include_last_offset=True)


def _sizes(net: Bags, ids: Tensor) -> Tensor:
    starts = torch.arange(0, ids.numel(), 3)
    found = torch.embedding_bag(net.bag.weight, ids.flatten(), starts, False, 1, False, None, False, None)
    return found[0] * found[2][:, None]


NEAR_MISSES = {
    "offsets that are computed": near_miss(
        lambda net, ids: net.bag(ids.flatten(), torch.arange(ids.shape[0]) * 3), OFFSETS
    ),
    "weights": near_miss(
        lambda net, ids: F.embedding_bag(
            ids, net.bag.weight, mode="sum", per_sample_weights=net.bag.weight[0, 0] + ids
        ),
        OPTIONS,
    ),
    "an id that counts for nothing": near_miss(
        lambda net, ids: F.embedding_bag(ids, net.bag.weight, padding_idx=1), OPTIONS
    ),
    "bags that are closed": near_miss(_closed, OPTIONS),
    "sizes of bags": near_miss(_sizes, "its offsets and sizes are used as well"),
    "a lookup and a mean": near_miss(lambda net, ids: F.embedding(ids, net.bag.weight).mean(1)),
}


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_are_a_lookup_and_a_reduction(mode: str) -> None:
    result = prove(Bags(mode=mode), (3,))
    assert fired(result)["decompose_bags"] == 1
    assert targets(result)[aten.embedding.default] == 1
    assert not any("bag" in str(target) for target in targets(result))
