"""gather_shifts: rolls, slices and their concatenation as one gather, and what is no shift of one tensor."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mlpdeploy.graph.rewrite import Rewritten
from tests.graph.proof import fired, prove, targets
from tests.graph.rules.examples import Example, NearMiss, Net, regions

aten = torch.ops.aten
CUTS = {aten.slice.Tensor, aten.narrow.default, aten.roll.default, aten.cat.default, aten.pad.default}

EXAMPLE = Example(regions, (8, 4, 5), fires=4)
NEAR_MISSES = {
    "a slice alone": NearMiss(lambda: Net(lambda _, x: x[:, :, 1:4] * 2), (3, 5, 4)),
    "two tensors": NearMiss(lambda: Net(lambda _, x: torch.cat([x, x * 2], 2)), (3, 5, 4)),
    "all elements in a row": NearMiss(lambda: Net(lambda _, x: torch.roll(x, 3)), (3, 5, 4)),
    "the batch": NearMiss(lambda: Net(lambda _, x: torch.cat([x, x], 0)[: x.shape[0]]), (3, 5, 4)),
}


def _cuts(result: Rewritten) -> int:
    return sum(count for target, count in targets(result).items() if target in CUTS)


def _wrapped(x: Tensor, dim: int) -> Tensor:
    x = torch.roll(x, 2, dim)
    return torch.cat([x, x.narrow(dim, 0, 3)], dim)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_rolls_and_wraps_are_one_gather(dim: int) -> None:
    result = prove(Net(lambda _, x: torch.roll(_wrapped(x, dim).narrow(dim, 1, 4), -1, dim)), (5, 6, 7))
    assert fired(result)["gather_shifts"] == 1
    assert _cuts(result) == 0
    assert targets(result)[aten.index_select.default] == 1


def test_a_roll_there_and_back_is_nothing() -> None:
    result = prove(Net(lambda _, x: F.relu(torch.roll(torch.roll(x, 2, 2), -2, 2))), (3, 5, 4))
    assert list(targets(result)) == [aten.relu.default]


def test_a_constant_in_front_is_added_behind() -> None:
    shifted = Net(lambda m, x: torch.roll(x * x + m.shift, 2, 2), shift=(1, 3, 5, 1))
    result = prove(shifted, (3, 5, 4))
    calls = [node.target for node in result.module.graph.nodes if node.op == "call_function"]
    assert calls.index(aten.index_select.default) < calls.index(aten.add.Tensor)


def test_what_else_reads_a_shift_still_gets_it() -> None:
    def both(_: Net, x: Tensor) -> Tensor:
        rolled = torch.roll(x * x, 1, 2)
        return rolled * torch.cat([rolled[:, :, 3:], rolled[:, :, :3]], 2)

    result = prove(Net(both), (3, 5, 4))
    assert fired(result)["gather_shifts"] == 2
    assert _cuts(result) == 0
