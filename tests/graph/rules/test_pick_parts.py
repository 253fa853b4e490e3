"""pick_parts: the parts of one tensor that are read one by one, and those that are picked or cut already."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.proof import fired, prove, targets
from tests.graph.rules.examples import Attention, Example, NearMiss, Net, windows

aten = torch.ops.aten

EXAMPLE = Example(windows, (4, 4, 4), fires=1)
NEAR_MISSES = {
    "parts that are selected": NearMiss(
        lambda: Attention("select"),
        (4, 6, 8),
        holds=lambda result: (targets(result)[aten.unbind.int], targets(result)[aten.select.int]) == (0, 3),
    ),
    "parts that keep their dimension": NearMiss(
        lambda: Net(lambda _, x: torch.mul(*x.chunk(2, 1))),
        (2, 5),
        holds=lambda result: aten.select.int not in targets(result),
    ),
}


def test_parts_of_one_projection_are_selected() -> None:
    found = prove(Attention(), (4, 6, 8))
    assert fired(found)["pick_parts"] == 1
    assert targets(found)[aten.unbind.int] == 0
    assert targets(found)[aten.select.int] == 3


class Parts(nn.Module):
    """Two parts of an unbound tensor, one of them twice and counted from the end."""

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unbind(-1)
        return parts[-1] * parts[0] + F.gelu(parts[-1])


def test_a_part_that_is_read_twice_is_selected_and_the_others_are_not() -> None:
    found = prove(Parts(), (3, 5))
    assert fired(found)["pick_parts"] == 1
    assert targets(found)[aten.select.int] == 2


def test_parts_that_are_stacked_again() -> None:
    assert fired(prove(Attention("list"), (4, 6, 8)))["pick_parts"] == 1
