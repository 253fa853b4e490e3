"""merge_reshapes: reshapes in a row, and what stands between them and minds the shape."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlpdeploy.graph.rewrite import Rewritten
from tests.graph.proof import prove_twice, targets
from tests.graph.rules.examples import Branches, Example, NearMiss, Net

aten = torch.ops.aten

EXAMPLE = Example(Branches, (4, 4, 16), fires=2)


def reshapes(result: Rewritten) -> int:
    return targets(result)[aten.reshape.default]


def read_between(m: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.fc(x).reshape(-1, 4, 3).softmax(-1)
    return y, y.reshape(-1, 2, 2, 3)


NEAR_MISSES = {
    "a softmax over an axis that the later reshape changes": NearMiss(
        lambda: Net(lambda m, x: m.fc(x).reshape(-1, 4, 3).softmax(-1).reshape(-1, 12), fc=nn.Linear(6, 12)),
        (6,),
        holds=lambda result: reshapes(result) == 2,
        twice=True,
    ),
    "a value between them that is used": NearMiss(lambda: Net(read_between, fc=nn.Linear(6, 12)), (6,), twice=True),
}


def test_reshapes_around_a_softmax_become_one() -> None:
    network = Net(lambda m, x: m.fc(x).reshape(-1, 4, 3).softmax(-1).reshape(-1, 1, 4, 3), fc=nn.Linear(6, 12))
    assert reshapes(prove_twice(network, "merge_reshapes", (6,))) == 1
