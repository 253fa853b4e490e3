"""Parallel linear branches become one projection: every form of them, exactly, and nothing that is not one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpdeploy.zoo import repmlp_net, repmlp_res50
from mlpdeploy.zoo.repmlp_net import RepMLPBlock
from tests.graph.proof import fired, prove, targets
from tests.graph.rules.examples import Example, NearMiss

aten = torch.ops.aten


class Locality(nn.Module):
    """A matrix over the grid of every share-set beside depthwise convolutions, and a gate (RepMLP at train time)."""

    def __init__(self) -> None:
        super().__init__()
        self.block = RepMLPBlock(4, 3, 2, deploy=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x.relu())


EXAMPLE = Example(Locality, (4, 3, 3), fires=1)


class Other(nn.Module):
    """Sums that are no projection, or would cost more as one."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.fc, self.same, self.wide = nn.Conv2d(16, 16, 1, groups=4), nn.Linear(4, 4), nn.Linear(4, 6)
        self.depthwise, self.mixing = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.empty(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:  # (b, 8, 2, 2)
        x = x.relu()
        grids = x.reshape(-1, 4, 2, 2)
        y = self.fc(grids.reshape(-1, 16, 1, 1)).reshape(-1, 4, 2, 2)
        if self.what == "a copy":
            return (y + grids).relu()
        if self.what == "not linear":
            return (y + self.depthwise(grids).relu()).relu()
        if self.what == "used elsewhere":
            return (y + self.depthwise(grids)) * y
        if self.what == "of another tensor":
            return (y + self.depthwise(grids.tanh())).relu()
        if self.what == "mixing share-sets":
            return (y + self.mixing(grids)).relu()
        if self.what == "scaled by channel":
            return (y + (self.depthwise(grids).reshape(-1, 8, 2, 2) * self.scale).reshape(-1, 4, 2, 2)).relu()
        if self.what == "along other axes":
            return (self.same(x.flatten(2)) + self.wide(x.flatten(2))[..., :4]).relu()
        assert self.what == "wider"
        return (self.wide(self.same(x.flatten(2))) + self.wide(x.flatten(2))).relu()


def near_miss(what: str, *why: str) -> NearMiss:
    # `split_projection` halves the wider one later, and then both are alike.
    return NearMiss(lambda: Other(what), (8, 2, 2), why, twice=what != "along other axes")


NEAR_MISSES = {
    **{
        what: near_miss(what)
        for what in ("a copy", "not linear", "used elsewhere", "of another tensor", "along other axes")
    },
    "mixing share-sets": near_miss("mixing share-sets", "a branch mixes what the projection keeps apart"),
    "scaled by channel": near_miss("scaled by channel", "a scale or shift differs from row to row"),
}


class Grids(nn.Module):
    """A matrix over the grid of every share-set, and depthwise convolutions, in the way of the authors' code."""

    def __init__(self, channels: int = 6, grid: int = 4, sharesets: int = 2) -> None:
        super().__init__()
        s, n = sharesets, grid * grid * sharesets
        self.channels, self.grid, self.s = channels, grid, s
        self.fc, self.fc_bn = nn.Conv2d(n, n, 1, groups=s, bias=False), nn.BatchNorm2d(s)
        self.convs = nn.ModuleList(nn.Conv2d(s, s, k, padding=k // 2, groups=s, bias=k == 5) for k in (1, 3, 5))
        self.bns = nn.ModuleList(nn.BatchNorm2d(s) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        s, g = self.s, self.grid
        parts = x.relu().reshape(-1, self.channels, 1, g, 1, g).permute(0, 2, 4, 1, 3, 5)
        y = self.fc_bn(self.fc(parts.reshape(-1, s * g * g, 1, 1)).reshape(-1, s, g, g)).reshape(-1, 1, 1, s, g, g)
        local: Tensor | int = 0
        for conv, bn in zip(self.convs, self.bns, strict=True):
            local = local + bn(conv(parts.reshape(-1, s, g, g)))
        assert isinstance(local, Tensor)
        y = y + local.reshape(-1, 1, 1, s, g, g)
        return y.permute(0, 3, 1, 4, 2, 5).reshape(x.shape) * x


class Dense(nn.Module):
    """A linear over all channels and pixels, a low-rank pair beside it (LoRA), and a dense convolution."""

    def __init__(self, rank: int = 2) -> None:
        super().__init__()
        self.full, self.down, self.up = nn.Linear(27, 18), nn.Linear(27, rank, bias=False), nn.Linear(rank, 18)
        self.conv = nn.Conv2d(3, 2, (3, 1), padding=(1, 0))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.tanh().flatten(1)
        maps = self.conv(rows.reshape(-1, 3, 3, 3)).flatten(1)
        return F.gelu(self.full(rows) + 0.5 * self.up(self.down(rows)) - 3 + maps)


class Whole(nn.Module):
    """The projection is a convolution whose kernel is its input; the result is wanted channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.conv = nn.Conv2d(4, 16, (3, 2), groups=2), nn.Conv2d(4, 8, 1, groups=2)
        self.narrow = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.tanh()
        one = self.fc(x).reshape(-1, 2, 4, 2)
        two = self.narrow(self.conv(x).reshape(-1, 2, 4, 6))
        return (one + two).transpose(1, 3).relu()


def test_grids_of_share_sets() -> None:
    result = prove(Grids(), (6, 4, 4))
    assert fired(result)["reparameterise"] == 1
    assert (targets(result)[aten.conv2d.default], targets(result)[aten.batch_norm.default]) == (1, 0)
    assert targets(result)[aten.add.Tensor] == 0


def test_grids_of_one_share_set() -> None:
    result = prove(Grids(5, 3, 1), (5, 3, 3))
    assert fired(result)["reparameterise"] == 1
    assert targets(result)[aten.linear.default] + targets(result)[aten.conv2d.default] == 1


def test_dense_and_low_rank_branches() -> None:
    result = prove(Dense(), (3, 3, 3))
    assert fired(result)["reparameterise"] == 1
    assert targets(result)[aten.linear.default] == 1
    assert targets(result)[aten.conv2d.default] == targets(result)[aten.add.Tensor] == 0


def test_a_kernel_as_large_as_its_input() -> None:
    result = prove(Whole(), (4, 3, 2))
    assert fired(result)["reparameterise"] == 1
    assert targets(result)[aten.conv2d.default] == 1
    assert targets(result)[aten.linear.default] == 0


def test_partitions_of_a_map() -> None:
    """RepMLP-Res50's block: as many operations as in the deployed form, its average's BatchNorm folded as well."""
    forms = [prove(repmlp_res50.RepMLP(8, 14, 4, deploy), (8, 14, 14), batches=(1, 3)) for deploy in (False, True)]
    assert [fired(form)["reparameterise"] for form in forms] == [1, 0]
    assert targets(forms[0]) == targets(forms[1])


@pytest.mark.slow
def test_a_train_time_network_is_compiled_to_the_deployed_one() -> None:
    tiny = (2, 1), (4, 8), (1, 4), 4, 2, 8, 3, 5
    forms = [prove(repmlp_net.RepMLPNet(*tiny, deploy=deploy), (3, 8, 8)) for deploy in (False, True)]
    assert [fired(form)["reparameterise"] for form in forms] == [3, 0]
    assert targets(forms[0]) == targets(forms[1])


class Scattered(Grids):
    """The same, where each branch comes back to the map before they are added."""

    def forward(self, x: Tensor) -> Tensor:
        s, g = self.s, self.grid
        parts = x.relu().reshape(-1, s, g, g)
        y = self.fc_bn(self.fc(parts.reshape(-1, s * g * g, 1, 1)).reshape(-1, s, g, g)).reshape(x.shape)
        for conv, bn in zip(self.convs, self.bns, strict=True):
            y = y + bn(conv(parts)).reshape(x.shape)
        return y * x


def test_branches_added_where_rows_are_told_in_factors() -> None:
    result = prove(Scattered(), (6, 4, 4))
    assert fired(result)["reparameterise"] == 1
    assert targets(result)[aten.conv2d.default] == 1


def test_the_projection_is_the_one_that_is_wide_enough() -> None:
    result = prove(Other("wider"), (8, 2, 2))
    assert fired(result)["reparameterise"] == 1
    assert targets(result)[aten.linear.default] == 1
