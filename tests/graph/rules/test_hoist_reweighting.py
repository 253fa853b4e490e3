"""hoist_reweighting: the mean of a sum of projections, where it is exact to take it before them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpdeploy.graph.custom_ops import SEGMENT_GROUPED_PROJECTION
from mlpdeploy.zoo.vip import VisionPermutator, WeightedPermuteMLP
from tests.graph.proof import fired, prove_twice, reasons, targets
from tests.graph.rules.examples import Branches, Example, NearMiss

aten = torch.ops.aten
RULE = "hoist_reweighting"

EXAMPLE = Example(Branches, (4, 4, 16), fires=2)


class Pooled(nn.Module):
    """Permute-MLP's mixing along the height and, behind `after`, what reads the sum of the branches."""

    def __init__(self, after: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.along_h, self.along_c, self.after = nn.Linear(12, 12, bias=False), nn.Linear(12, 12), after

    def forward(self, x: Tensor) -> Tensor:
        h = x.unflatten(-1, (3, 4)).permute(0, 3, 2, 1, 4).flatten(3)
        h = self.along_h(h).unflatten(-1, (3, 4)).permute(0, 3, 2, 1, 4).flatten(3)
        return self.after(h, self.along_c(x))


class Behind(Pooled):
    """The same with the elements of a segment in front of the segments."""

    def forward(self, x: Tensor) -> Tensor:
        h = x.unflatten(-1, (4, 3)).permute(0, 4, 2, 1, 3).flatten(3)
        h = self.along_h(h).unflatten(-1, (3, 4)).permute(0, 3, 2, 4, 1).flatten(3)
        return self.after(h, self.along_c(x))


def near_miss(after: Callable[[Tensor, Tensor], Tensor], *why: str) -> NearMiss:
    return NearMiss(lambda: Pooled(after), (3, 3, 12), why)


NEAR_MISSES = {
    "over the channels too": near_miss(
        lambda h, c: h * (h + c).mean((1, 2, 3))[:, None, None, None] + c,
        "the mean takes a part of what the projection produces",
    ),
    "of a term that is no projection": near_miss(
        lambda h, c: h * (h + F.gelu(c)).mean((1, 2))[:, None, None] + c, "a term of the sum is no projection"
    ),
    "with an axis behind the projection": NearMiss(
        lambda: Behind(MEANS["over the grid"]),
        (3, 3, 12),
        ("the projection has an axis behind those that it produces",),
    ),
    "of one projection": near_miss(lambda h, c: h * h.mean((1, 2))[:, None, None] + c),
    "of a sum that is kept as well": near_miss(lambda h, c: (y := h + c).mean((1, 2), keepdim=True) + y),
}

MEANS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "over the grid": lambda h, c: h * (h + c).mean((1, 2))[:, None, None] + c,
    "over the width, which is not projected": lambda h, c: h * (h + c).mean(2)[:, :, None] + c,
}


@pytest.mark.parametrize("name", MEANS)
def test_a_mean_is_hoisted_where_it_is_exact(name: str) -> None:
    result = prove_twice(Pooled(MEANS[name]), RULE, (3, 3, 12), enabled=[RULE])
    assert fired(result)[RULE] == 1 and not reasons(result, RULE)


@pytest.mark.parametrize(("dim", "segments"), [(12, 3), (8, 2), (16, 4)])
def test_the_mean_for_the_reweighting_is_taken_before_the_projections(dim: int, segments: int) -> None:
    shape = (segments, segments, dim)
    result = prove_twice(WeightedPermuteMLP(dim, segments), RULE, shape, enabled=[RULE])
    assert fired(result)[RULE] == 1
    assert targets(result)[SEGMENT_GROUPED_PROJECTION] == 4
    # No mean of anything is left that is as large as the sum of the branches.
    means = [node for node in result.module.graph.nodes if node.target is aten.mean.dim]
    assert means and all(not str(node.args[0].target).startswith("aten.add") for node in means)


@pytest.mark.slow
def test_every_block_of_vip_is_hoisted_and_none_by_default() -> None:
    network = VisionPermutator((2, 1), (8, 12), (4, 2), (True, False), patch_size=2, image_size=8, num_classes=5)
    by_default = prove_twice(network, "fold_affine", (3, 8, 8))
    assert fired(by_default)[RULE] == 0
    result = prove_twice(network, "fold_affine", (3, 8, 8), enabled=[RULE])
    assert fired(result)[RULE] == 3
