"""Tables that become one, and what looks like that and is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.graph.proof import aten, fired, prove, targets
from tests.graph.rules.examples import Example, NearMiss

Forward = Callable[["Net", Tensor], Tensor]


class Fields(nn.Module):
    """A table of vectors for each column of ids (DualMLP)."""

    def __init__(self) -> None:
        super().__init__()
        self.tables, self.head = nn.ModuleList(nn.Embedding(3 + i, 4) for i in range(3)), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        ids = (x.clamp(-1, 1) + 1).to(torch.int64)
        return self.head(torch.cat([table(ids[:, i]) for i, table in enumerate(self.tables)], 1))


EXAMPLE = Example(Fields, (3,), fires=1)


class Net(nn.Module):
    """`forward_` on ids (b, 4), each 0, 1 or 2, with tables of 3, 4, 5 and 6 rows of 4 numbers, and one of 6."""

    def __init__(self, forward_: Forward) -> None:
        super().__init__()
        self.forward_ = forward_
        self.tables = nn.ModuleList(nn.Embedding(3 + i, 4) for i in range(4))
        self.wide, self.matrix = nn.Embedding(7, 6), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_(self, (x.clamp(-1, 1) + 1).to(torch.int64))

    def rows(self, ids: Tensor, *columns: int) -> list[Tensor]:
        """Table i at the i-th of these columns."""
        return [self.tables[i](ids[:, column]) for i, column in enumerate(columns)]


def near_miss(forward: Forward, *why: str) -> NearMiss:
    return NearMiss(lambda: Net(forward), (4,), why)


NEAR_MISSES = {
    "widths": near_miss(
        lambda net, ids: torch.cat([*net.rows(ids, 0), net.wide(ids[:, 1])], 1), "its tables differ in width or dtype"
    ),
    "ids": near_miss(
        lambda net, ids: torch.cat([net.tables[0](ids[:, 0]), net.tables[1](ids.flip(1)[:, 1])], 1),
        "its tables are indexed by different ids",
    ),
    "batch": near_miss(
        lambda net, ids: torch.cat(net.rows(ids, 0, 1), 0).unflatten(0, (2, -1)).sum(0),
        "its rows are concatenated along the batch",
    ),
    "a part that is no lookup": near_miss(lambda net, ids: torch.cat([*net.rows(ids, 0), ids.to(torch.float64)], 1)),
    "all ids at once": near_miss(lambda net, ids: torch.cat([table(ids) for table in net.tables], 2)),
    "a table that is computed": near_miss(
        lambda net, ids: torch.cat(
            [torch.embedding(net.matrix(ids.to(torch.float64))[:, :4], ids[:, 0].clamp(max=0)), *net.rows(ids, 1)], 1
        )
    ),
}


MERGED: dict[str, Forward] = {
    "all columns": lambda net, ids: torch.cat(net.rows(ids, 0, 1, 2, 3), 1),
    "some columns, in another order": lambda net, ids: torch.cat(net.rows(ids, 3, 1, 2), -1),
    "columns counted from the back": lambda net, ids: torch.cat(net.rows(ids, -1, -2), 1),
    "a column twice": lambda net, ids: torch.cat(net.rows(ids, 2, 2), 1),
    "a table twice": lambda net, ids: torch.cat([net.tables[0](ids[:, 0]), net.tables[0](ids[:, 1])], 1),
    "one part used elsewhere": lambda net, ids: torch.cat(rows := net.rows(ids, 0, 1), 1) + torch.cat(rows, 1).flip(1),
}


@pytest.mark.parametrize("name", MERGED)
def test_one_gather_is_left(name: str) -> None:
    result = prove(Net(MERGED[name]), (4,))
    assert fired(result)["merge_embeddings"] == 1 + (name == "one part used elsewhere")
    assert aten.cat.default not in targets(result)
    assert aten.select.int not in targets(result)
