"""decompose_rolls: a roll along several dimensions, and those that are one already or along none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.graph.proof import fired, prove, targets
from tests.graph.rules.examples import Example, NearMiss, windows

aten = torch.ops.aten

EXAMPLE = Example(windows, (4, 4, 4), fires=2)


class Rolled(nn.Module):
    """A roll, given as torch takes it."""

    def __init__(self, shifts: int | tuple[int, ...], dims: tuple[int, ...] | None) -> None:
        super().__init__()
        self.shifts, self.dims, self.head = shifts, dims, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.roll(x, self.shifts, self.dims or ()))


NEAR_MISSES = {
    "along one dimension": NearMiss(
        lambda: Rolled((1,), (2,)),
        (3, 5, 4),
        holds=lambda result: (targets(result)[aten.roll.default], targets(result)[aten.index_select.default]) == (0, 1),
    ),
    "of the flattened tensor": NearMiss(  # its elements pass from one image to the next
        lambda: Rolled(3, None), (3, 5, 4), holds=lambda result: targets(result)[aten.roll.default] == 1
    ),
}


@pytest.mark.parametrize(("shifts", "dims"), [((-1, 2), (1, 2)), ((1, 1, 1), (1, 2, -1)), ((7, -7), (2, 1))])
def test_rolls_along_several_dimensions_are_one_gather_each(shifts: tuple[int, ...], dims: tuple[int, ...]) -> None:
    found = prove(Rolled(shifts, dims), (3, 5, 4))
    assert fired(found)["decompose_rolls"] == 1
    assert targets(found)[aten.roll.default] == 0
    assert targets(found)[aten.index_select.default] == len(dims)
