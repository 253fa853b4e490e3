"""fuse_epilogues: what becomes the epilogue of a segment-grouped projection, and what must stay as it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpdeploy.graph.custom_ops import SEGMENT_GROUPED_PROJECTION, WITH_EPILOGUE
from mlpdeploy.graph.rewrite import Rewritten
from mlpdeploy.zoo.raft_mlp import RaftMLP, Stage
from mlpdeploy.zoo.vip import VisionPermutator
from tests.graph.proof import aten, fired, prove, rewritten, targets
from tests.graph.rules.examples import Example, NearMiss, rafts

RULES = ("fuse_epilogues", "hoist_reweighting")
H, W, N, S = 3, 5, 3, 4
C = N * S
Forward = Callable[["Net", Tensor, Tensor], Tensor]

EXAMPLE = Example(rafts, (3, 8, 8), fires=2)


class Net(nn.Module):
    """`after(self, h, x)`, where h is Permute-MLP's mixing of x along the height."""

    def __init__(self, after: Forward, bias: bool = False) -> None:
        super().__init__()
        self.after, self.along_h = after, nn.Linear(C, C, bias=bias)
        self.shift, self.weights = nn.Parameter(torch.empty(C)), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        h = x.unflatten(-1, (N, S)).permute(0, 3, 2, 1, 4).flatten(3)
        h = self.along_h(h).unflatten(-1, (N, S)).permute(0, 3, 2, 1, 4).flatten(3)
        return self.after(self, h, x)

    def scale(self, x: Tensor) -> Tensor:
        """A number for each image and channel."""
        return torch.sigmoid(self.weights(x.mean((1, 2))))[:, None, None]


def fused(result: Rewritten) -> list[tuple[bool, bool, bool, bool]]:
    """Of each epilogue, whether it has a bias, GELU, a scale, and something to accumulate onto."""
    nodes = [node for node in result.module.graph.nodes if node.target is WITH_EPILOGUE]
    return [(*(arg is not None and arg is not False for arg in node.args[3:]),) for node in nodes]  # type: ignore[misc]


def _seen_as_rows(net: Net, h: Tensor, x: Tensor) -> Tensor:
    """Seen as rows of other lengths, a factor would go to numbers of several segments."""
    seen, rows = h.reshape(-1, H * C, W), x.reshape(-1, H * C, W)
    return rows + seen * torch.sigmoid(rows.mean(1, keepdim=True))


def unfused(result: Rewritten) -> bool:
    return not fused(result) and targets(result)[SEGMENT_GROUPED_PROJECTION] == 1


def near_miss(after: Forward, *why: str) -> NearMiss:
    return NearMiss(lambda: Net(after), (H, W, C), why, holds=unfused)


NOT_EACH = "its scale is not one number for each image and channel"
NEAR_MISSES = {
    "nothing follows": near_miss(lambda net, h, x: F.relu(h)),
    "another activation": near_miss(lambda net, h, x: F.silu(h)),
    "what is before GELU is read as well": near_miss(lambda net, h, x: F.gelu(h) * h),
    "what is added to is read as well": near_miss(lambda net, h, x: (x + h) * h),
    "what is scaled is read as well": near_miss(lambda net, h, x: (x + h * net.scale(x)) * h),
    "what is added to is read in another shape as well": near_miss(lambda net, h, x: (x + h).mean() + h.flatten(2)),
    "added with a factor": near_miss(lambda net, h, x: torch.add(x, h, alpha=2)),
    "added to one row for all images": near_miss(lambda net, h, x: h + torch.sin(x[:1])),
    "scaled by a number for each element": near_miss(lambda net, h, x: x + h * torch.sin(x), NOT_EACH),
    "scaled by a number for each channel": near_miss(lambda net, h, x: x + h * torch.sin(net.shift), NOT_EACH),
    "scaled by a number for each image": near_miss(
        lambda net, h, x: x + h * net.scale(x).mean(-1, keepdim=True), NOT_EACH
    ),
    "scaled by a number for each row": near_miss(
        lambda net, h, x: x + h * torch.sin(x.mean((2, 3), keepdim=True)), NOT_EACH
    ),
    "channels that are not the projection's own": near_miss(
        _seen_as_rows, "its channels are not the last parts of what the projection produces"
    ),
}


FUSED: dict[str, tuple[Forward, bool, tuple[bool, bool, bool, bool]]] = {
    "bias": (lambda net, h, x: F.relu(h), True, (True, False, False, False)),
    "bias and GELU": (lambda net, h, x: F.gelu(h), True, (True, True, False, False)),
    "GELU": (lambda net, h, x: F.gelu(h), False, (False, True, False, False)),
    "GELU by tanh": (lambda net, h, x: F.gelu(h, approximate="tanh"), False, (False, True, False, False)),
    "a residual": (lambda net, h, x: x + h, False, (False, False, False, True)),
    "a residual, the other way round, with a bias": (lambda net, h, x: h + x, True, (True, False, False, True)),
    "a residual behind bias and GELU": (lambda net, h, x: F.gelu(h) + x, True, (True, True, False, True)),
    "scaled and added": (lambda net, h, x: x + h * net.scale(x), False, (False, False, True, True)),
    "scaled by the first factor": (lambda net, h, x: net.scale(x) * h + x, False, (False, False, True, True)),
    "the last of many terms": (
        lambda net, h, x: (x + torch.sin(x)) + (torch.cos(x) + h * net.scale(x)), False, (False, False, True, True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_what_follows_is_fused(name: str) -> None:
    after, bias, wanted = FUSED[name]
    result = prove(Net(after, bias), (H, W, C), enabled=RULES[:1])
    assert fused(result) == [wanted] and fired(result)["fuse_epilogues"] == 1
    assert SEGMENT_GROUPED_PROJECTION not in targets(result)


def test_a_sum_of_projections_alone_accumulates_the_others_onto_one() -> None:
    result = prove(Net(lambda net, h, x: h + F.gelu(net.along_h(x))), (H, W, C), enabled=RULES[:1])
    assert fused(result) == [(False, False, False, True)]


@pytest.mark.slow
def test_the_branches_of_vip_are_accumulated_with_their_weights() -> None:
    """Two branches in each block, and two terms of the mean that its weights are computed from."""
    network = VisionPermutator((2, 1), (8, 12), (4, 2), (True, False), patch_size=2, image_size=8, num_classes=5)
    result = prove(network, (3, 8, 8), enabled=RULES)
    assert sorted(fused(result)) == 6 * [(False, False, False, True)] + 6 * [(False, False, True, True)]
    alone = prove(network, (3, 8, 8), enabled=RULES[:1])
    assert fused(alone) == []  # the branches are read by the mean as well


@pytest.mark.slow
def test_raft_mlp_activates_and_adds_in_the_projections() -> None:
    network = RaftMLP([Stage(depth=1, dim=8, patch=2)], image_size=8, trained=8, num_classes=5)
    result = prove(network, (3, 8, 8), enabled=RULES[:1])
    assert (True, True, False, False) in fused(result) and (True, False, False, True) in fused(result)
    assert SEGMENT_GROUPED_PROJECTION not in targets(result)


def test_it_is_off_unless_asked_for() -> None:
    result = rewritten(Net(FUSED["bias and GELU"][0], True), (H, W, C))
    assert "fuse_epilogues" not in fired(result) and aten.gelu.default in targets(result)
