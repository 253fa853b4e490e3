"""reorder_channels: streams whose channels take the order of their segments, and streams that somebody sees."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mlpdeploy.graph.custom_ops import SEGMENT_GROUPED_PROJECTION
from mlpdeploy.zoo.vip import VisionPermutator
from tests.graph.proof import aten, fired, moves, prove, prove_twice, targets
from tests.graph.rules.examples import Example, NearMiss

RULE = "reorder_channels"
H, W, N, S = 3, 5, 3, 4
C = N * S
Step = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """A linear makes channels, `step` handles them, and W and S are mixed within each segment before a head."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step
        self.stem, self.mix, self.head = nn.Linear(2, C), nn.Linear(W * S, W * S), nn.Linear(C, 2)
        self.norm, self.batch_norm = nn.LayerNorm(C), nn.BatchNorm2d(C)
        self.scale, self.token = nn.Parameter(torch.empty(C, 1, 1)), nn.Parameter(torch.empty(1, 1, W, C))
        self.mlp, self.gate, self.branches = nn.Linear(C, C), nn.Linear(C, C), nn.Linear(C, 3 * C)
        self.depthwise, self.dense = nn.Conv2d(C, C, 3, padding=1, groups=C), nn.Conv2d(C, C, 3, padding=1)
        self.grouped, self.one = nn.Conv2d(C, C, 3, padding=1, groups=2), nn.Conv2d(C, C, 1)
        self.same = nn.Conv2d(C, C, 3, padding="same", groups=C)
        self.line, self.volume = nn.Conv1d(C, C, 3, padding=1), nn.Conv3d(C, C, 3, padding=1)
        self.across = nn.Linear(W * N, W * N)
        self.root, self.instance = nn.RMSNorm(C), nn.InstanceNorm2d(C, affine=True)
        self.map, self.groups, self.slopes = nn.GroupNorm(1, C), nn.GroupNorm(2, C), nn.PReLU(C)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mixed(self.step(self, self.stem(x))).relu())

    def mixed(self, x: Tensor) -> Tensor:
        """Permute-MLP along the width."""
        h = x.shape[1]
        y = x.reshape(-1, h, W, N, S).transpose(2, 3).reshape(-1, h, N, W * S)
        return self.mix(y).reshape(-1, h, N, W, S).transpose(2, 3).reshape(-1, h, W, C)

    def crossed(self, x: Tensor) -> Tensor:
        """Of channels as (s n)."""
        y = self.across(x.unflatten(-1, (N, S)).permute(0, 1, 4, 2, 3).flatten(3))
        return y.unflatten(-1, (W, N)).permute(0, 1, 3, 4, 2).flatten(3)


def on_maps(step: Callable[[Net, Tensor], Tensor]) -> Step:
    """The same with channels in front."""
    return lambda net, x: step(net, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def weighted(net: Net, x: Tensor, fastest: bool) -> Tensor:
    """Three copies, weighted by a softmax over them for each image and channel."""
    a = net.branches(x.mean((1, 2)))
    a = a.unflatten(-1, (C, 3)).permute(2, 0, 1) if fastest else a.unflatten(-1, (3, C)).transpose(0, 1)
    a = a.softmax(0)[:, :, None, None]
    return x * a[0] + x.sin() * a[1] + x.cos() * a[2]


STEPS: dict[str, Step] = {
    "nothing": lambda net, x: x,
    "a norm": lambda net, x: net.norm(x),
    "a residual MLP": lambda net, x: x + net.mlp(F.gelu(net.mlp(net.norm(x)))),
    "an MLP with another order between": lambda net, x: x + net.mlp(net.mlp(x)),
    "the block twice": lambda net, x: x + net.mixed(net.norm(x)),
    "a batch norm and a scale": on_maps(lambda net, x: net.batch_norm(x) * net.scale),
    "a depthwise convolution": on_maps(lambda net, x: x + net.depthwise(x)),
    "a dense convolution": on_maps(lambda net, x: x + net.dense(x)),
    "pooled": on_maps(lambda net, x: x - F.avg_pool2d(x, 3, 1, 1)),
    "gated by its mean": lambda net, x: x * net.gate(x.mean((1, 2), keepdim=True)).sigmoid(),
    "gated by its mean, seen as large": lambda net, x: x * net.gate(x.mean(1, keepdim=True)).expand_as(x),
    "without the mean of its channels": lambda net, x: x - x.mean(-1, keepdim=True),
    "shares of its channels": lambda net, x: x.softmax(-1) * x.sum(-1, keepdim=True),
    "a row more": lambda net, x: torch.cat([net.token.expand(x.shape[0], -1, -1, -1), x], 1),
    "rows in two parts": lambda net, x: torch.cat([part * 2 for part in x.split([1, 2], 1)], 1),
    "a row less": lambda net, x: x[:, 1:] * x[:, 0].unsqueeze(1),
    "three branches, the branch fastest": lambda net, x: weighted(net, x, fastest=True),
    "three branches, the channel fastest": lambda net, x: weighted(net, x, fastest=False),
    "mixed, and read beside the next mixing": lambda net, x: (y := net.mixed(x)) + net.mixed(y),
    "other convolutions": on_maps(
        lambda net, x: net.line(net.same(x).flatten(2)).unflatten(2, (H, W)) + net.volume(x[:, :, None]).squeeze(2)
    ),
    "other norms": lambda net, x: net.root(on_maps(lambda net, x: net.slopes(net.instance(net.map(x))))(net, x)),
    "by its lengths and spreads": lambda net, x: (
        F.normalize(x, dim=-1)
        + x.norm(dim=(1, 2), keepdim=True) / (1 + x.var(-1, keepdim=True) + x.std(1, keepdim=True))
    ),
    "by logarithms": lambda net, x: x.log_softmax(-1) - x.logsumexp(1, keepdim=True),
    "branches in a stack": lambda net, x: (torch.stack([x, net.mlp(x)], 1) * net.scale[:, 0, 0]).sum(1),
    "as high, padded and gathered": lambda net, x: (
        F.pad(x, (0, 0, 0, 0, 1, 1)).index_select(1, torch.tensor([2, 3, 1])) + x
    ),
    "tokens in one axis": lambda net, x: net.norm(x.flatten(1, 2)).unflatten(1, (H, W)),
}


@pytest.mark.parametrize("name", STEPS)
def test_the_stream_takes_the_order_into_its_constants(name: str) -> None:
    result = prove_twice(Net(STEPS[name]), RULE, (H, W, 2), enabled=[RULE])
    assert fired(result)[RULE] >= 1 and targets(result)[SEGMENT_GROUPED_PROJECTION] == 0


@pytest.mark.slow
@settings(max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from([name for name in STEPS if "a row" not in name]), min_size=2, max_size=5))
def test_so_does_any_stream_of_them(names: list[str]) -> None:
    def steps(net: Net, x: Tensor) -> Tensor:
        return functools.reduce(lambda value, name: STEPS[name](net, value), names, x)

    assert fired(prove(Net(steps), (H, W, 2), batches=(1, 3), enabled=[RULE]))[RULE] >= 1


def near_miss(step: Step, why: str) -> NearMiss:
    return NearMiss(lambda: Net(step), (H, W, 2), (f"{why} has its channels in their order",))


EXAMPLE = Example(lambda: Net(STEPS["the block twice"]), (H, W, 2), fires=2)
NEAR_MISSES = {
    "mixed in the other order as well": NearMiss(
        lambda: Net(lambda net, x: x + net.crossed(x)), (H, W, 2), ("its channels are mixed as (s n) elsewhere",)
    ),
    "halves": near_miss(lambda net, x: torch.cat([x[..., : C // 2].sin(), x[..., C // 2 :]], -1), "aten::cat"),
    "a gate of two halves": near_miss(lambda net, x: torch.cat([one * 2 for one in x.chunk(2, -1)], -1), "aten::cat"),
    "groups of channels": near_miss(on_maps(lambda net, x: net.grouped(x)), "aten::conv2d"),
    "a norm of groups of channels": near_miss(on_maps(lambda net, x: net.groups(x)), "aten::group_norm"),
    "padded channels": near_miss(lambda net, x: F.pad(x, (1, 0))[..., 1:], "aten::slice"),
    "channels in a stack": near_miss(lambda net, x: torch.stack([*x.unbind(-1)], -1), "aten::stack"),
    "a map without a batch": near_miss(
        lambda net, x: x + net.one(x.mean((1, 2)).t()[..., None])[..., 0].t()[:, None, None], "aten::conv2d"
    ),
    "rolled": near_miss(lambda net, x: x.roll(1, -1), "aten::index_select"),
    "a running sum": near_miss(lambda net, x: x.cumsum(-1), "aten::cumsum"),
    "other segments as well": near_miss(
        lambda net, x: x + x.unflatten(-1, (2, C // 2)).softmax(-1).flatten(-2), "aten::flatten"
    ),
    "no other axis with the segments": NearMiss(
        lambda: Plain(lambda net, x: net.small(x.unflatten(-1, (N, S))).flatten(-2)), (H, W, C)
    ),
    "all of the channels": NearMiss(
        lambda: Plain(lambda net, x: net.whole(x.flatten(2)).unflatten(-1, (W, C))), (H, W, C)
    ),
    "the input itself": NearMiss(
        lambda: Plain(lambda net, x: net.mix(x.unflatten(-1, (N, S)).transpose(2, 3).flatten(3)).sum(3)),
        (H, W, C),
        ("input_0 has its channels in their order",),
    ),
}


class Plain(nn.Module):
    """`step` on the input as it is."""

    def __init__(self, step: Callable[[Plain, Tensor], Tensor]) -> None:
        super().__init__()
        self.step = step
        self.small, self.whole, self.mix = nn.Linear(S, S), nn.Linear(W * C, W * C), nn.Linear(W * S, W * S)

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self, x)


@pytest.mark.slow
def test_the_width_branch_of_vip_is_a_product_from_the_left_and_nothing_is_permuted() -> None:
    network = VisionPermutator((2, 1), (8, 12), (4, 2), (True, False), patch_size=2, image_size=8, num_classes=5)
    result, plain = prove_twice(network, RULE, (3, 8, 8), enabled=[RULE]), prove(network, (3, 8, 8))
    assert fired(result)[RULE] == 3 and fired(result)["project_tokens"] == 3
    assert moves(result) == moves(plain) == 1
    # Of the projections that are left, three are height branches in the trailing form, and one is the downsampling.
    assert targets(result)[SEGMENT_GROUPED_PROJECTION] == 4 and targets(result)[aten.matmul.default] == 3


def test_it_is_off_unless_asked_for() -> None:
    assert RULE not in fired(prove(Net(STEPS["a norm"]), (H, W, 2)))
