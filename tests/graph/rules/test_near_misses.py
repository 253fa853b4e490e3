"""What looks like token mixing or Permute-MLP and is not: no rule may fire, and the function stays."""

from __future__ import annotations

from collections.abc import Callable

import einops
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.proof import aten, fired, moves, prove, reasons, targets

T, C = 6, 4
H, W, N, S = 2, 3, 5, 4
Forward = Callable[["Net", Tensor], "Tensor | tuple[Tensor, ...]"]


class Net(nn.Module):
    """`forward_` on parameters of the shapes given; `tokens` and `channels` are linears over 6 and 4 elements."""

    def __init__(self, forward_: Forward, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.forward_ = forward_
        self.tokens, self.channels = nn.Linear(T, T), nn.Linear(C, C)
        self.norm, self.across = nn.LayerNorm(C), nn.LayerNorm(T)
        self.weights = nn.ParameterList(torch.empty(shape) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.forward_(self, x)


# A transpose that is needed: what comes after wants the tokens last.

NEEDED: dict[str, Forward] = {
    "returned transposed": lambda net, x: net.tokens(net.norm(x).mT),
    "normalised over tokens": lambda net, x: net.across(net.tokens(net.norm(x).mT)),
    "normalised over tokens, and back": lambda net, x: net.across(net.tokens(net.norm(x).mT)).mT,
    "two linears over tokens, then returned": lambda net, x: net.tokens(F.gelu(net.tokens(net.norm(x).mT))),
}


@pytest.mark.parametrize("name", NEEDED)
def test_a_transpose_that_is_needed_stays(name: str) -> None:
    result = prove(Net(NEEDED[name]), (T, C))
    if name == "two linears over tokens, then returned":  # one transpose in all, wherever it is
        assert moves(result) == 1
        return
    assert fired(result)["project_tokens"] == 0
    assert moves(result) == 1 + name.endswith("and back")
    assert reasons(result, "project_tokens") == ["its consumers want the result as (batch 4 6): a transpose is needed"]


def test_softmax_over_tokens_needs_no_transpose() -> None:
    """Softmax works along any axis as it lies, so here the transpose goes."""
    result = prove(Net(lambda net, x: net.norm(torch.softmax(net.tokens(x.mT), -1).mT)), (T, C))
    assert (fired(result)["project_tokens"], moves(result)) == (1, 0)


# A view that two consumers read, and each wants its own layout.


def test_consumers_of_the_result_that_disagree() -> None:
    """One consumer wants tokens last, one wants channels last: the linear runs on the transposed input, as written."""

    def forward(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        mixed = net.tokens(net.norm(x).mT)
        return net.across(mixed), net.norm(mixed.mT)

    result = prove(Net(forward), (T, C))
    assert fired(result)["project_tokens"] == 0
    assert reasons(result, "project_tokens") == ["its consumers want different layouts"]
    assert moves(result) == 2


def test_input_that_another_consumer_wants_transposed() -> None:
    """The transposed input is made for the LayerNorm; the product from the left still reads what lies in memory."""

    def forward(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = net.norm(x).mT
        return net.norm(net.tokens(rows).mT), net.across(rows)

    result = prove(Net(forward), (T, C))
    assert (fired(result)["project_tokens"], moves(result)) == (1, 1)


def test_a_disagreement_at_the_end_does_not_reach_the_blocks_before() -> None:
    """The last sum is computed as it is seen, so the token mixing that feeds it is projected all the same."""

    def forward(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        for _ in range(2):
            x = x + net.tokens(net.norm(x).mT).mT
        return net.norm(x), net.across(x.mT)

    result = prove(Net(forward), (T, C))
    assert (fired(result)["project_tokens"], moves(result)) == (2, 1)


def test_both_sides_disagree() -> None:
    def forward(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = net.norm(x).mT
        mixed = net.tokens(rows) + net.across(rows)
        return net.norm(mixed.mT), net.across(mixed)

    result = prove(Net(forward), (T, C))
    assert fired(result)["project_tokens"] == 0
    assert reasons(result, "project_tokens") == ["its consumers want the result as (batch 4 6): a transpose is needed"]


# Projections over other axes than those that were moved.


def _over_channels(net: Net, x: Tensor) -> Tensor:
    """Permuted to b w h c, and the linear is over c: nothing but channel mixing."""
    return net.channels(x.transpose(1, 2)).transpose(1, 2) + x


def _moved_between(net: Net, x: Tensor) -> Tensor:
    """w comes in front of h, and (h c) is contracted where it lies after the move."""
    rows = einops.rearrange(x, "b h w c -> b w (h c)")
    return einops.rearrange(F.linear(rows, net.weights[0]), "b w (h c) -> b h w c", c=C)


def test_channels_of_a_permuted_grid_are_channels() -> None:
    result = prove(Net(_over_channels), (H, W, C))
    assert (fired(result)["project_tokens"], fired(result)["project_segments"], moves(result)) == (0, 0, 0)


def test_two_runs_are_a_segment_projection_with_one_segment_group() -> None:
    """(h c) of `b h w c` is p = h, q = w, s = c: that it has no n does not matter."""
    result = prove(Net(_moved_between, (H * C, H * C)), (H, W, C))
    assert (fired(result)["project_tokens"], fired(result)["project_segments"], moves(result)) == (0, 1, 0)


def _apart(there: str, *back: str) -> Forward:
    """A linear over axes that `there` brings last, for each of `back`: the first is what the last gives back."""

    def forward(net: Net, x: Tensor) -> Tensor:
        rows = einops.rearrange(x, there)
        for weight in net.weights[:-1]:
            rows = F.gelu(F.linear(rows, weight))
        return einops.rearrange(F.linear(rows, net.weights[-1]), back[0], v=2, h=H)

    return forward


APART: dict[str, tuple[Forward, tuple[tuple[int, int], ...], tuple[int, int, int]]] = {
    "one linear over (h v), and back": (
        _apart("b h w v c -> b w c (h v)", "b w c (h v) -> b h w v c"), ((H * 2, H * 2),), (0, 1, 0),
    ),
    "(v h), two linears, and back (RaftMLP)": (
        _apart("b h w v c -> b w c (v h)", "b w c (v h) -> b h w v c"), ((7, H * 2), (H * 2, 7)), (0, 2, 0),
    ),
    "(v h), three linears, and back": (
        _apart("b h w v c -> b w c (v h)", "b w c (v h) -> b h w v c"), ((7, H * 2), (5, 7), (H * 2, 5)), (1, 2, 0),
    ),
    "the result has c in front of v": (
        _apart("b h w v c -> b w c (h v)", "b w c (h v) -> b h w c v"), ((H * 2, H * 2),), (0, 1, 1),
    ),
    "the result has h behind w: k is 1": (
        _apart("b h w v c -> b w c (h v)", "b w c (h v) -> b w h v c"), ((H * 2, H * 2),), (0, 1, 0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_axes_apart_from_each_other_and_not_last(name: str) -> None:
    forward, shapes, found = APART[name]
    result = prove(Net(forward, *shapes), (H, W, 2, C))
    assert (fired(result)["project_tokens"], fired(result)["project_segments"], moves(result)) == found


def _four_apart(net: Net, x: Tensor) -> Tensor:
    rows = einops.rearrange(x, "b h w v c u -> b w c (h v u)")
    return einops.rearrange(F.linear(rows, net.weights[0]), "b w c (h v u) -> b h w v c u", h=H, v=2)


def test_three_runs_are_not_two() -> None:
    result = prove(Net(_four_apart, (H * 6, H * 6)), (H, W, 2, C, 3))
    assert (fired(result)["project_tokens"], fired(result)["project_segments"]) == (0, 0)


def _segments(there: str, back: str, **sizes: int) -> Forward:
    def forward(net: Net, x: Tensor) -> Tensor:
        rows = einops.rearrange(x, there, **sizes)
        return einops.rearrange(F.linear(rows, net.weights[0]), back, **sizes)

    return forward


SEGMENTS: dict[str, tuple[Forward, tuple[int, ...], str]] = {
    "returned with n first": (
        _segments("b h w (n s) -> b n w (h s)", "b n w (h s) -> b n w h s", n=N, h=H),
        (H * S, H * S),
        "batch 5 3 2 4",
    ),
    "height and segments change places": (
        _segments("b h w (n s) -> b n w (h s)", "b n w (h s) -> b n w (h s)", n=N, h=H),
        (H * S, H * S),
        "batch 5 3 2 4",
    ),
    "s comes back in front of n": (
        _segments("b h w (n s) -> b n w (h s)", "b n w (h s) -> b h w (s n)", n=N, h=H),
        (H * S, H * S),
        "batch 2 3 4 5",
    ),
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_segments_that_do_not_come_back(name: str) -> None:
    forward, shape, wanted = SEGMENTS[name]
    result = prove(Net(forward, shape), (H, W, N * S))
    assert fired(result)["project_segments"] == 0
    assert reasons(result, "project_segments") == [
        f"its consumers want the result as ({wanted}): a transpose is needed"
    ]


def test_segments_that_do_not_divide_the_output() -> None:
    """9 results of (h s) = 8 elements cannot be told as k t with k in the place of h = 2."""

    def forward(net: Net, x: Tensor) -> Tensor:
        rows = einops.rearrange(x, "b h w (n s) -> b n w (h s)", n=N)
        return einops.rearrange(F.linear(rows, net.weights[0]), "b n w (k t) -> b k w (n t)", k=3)

    result = prove(Net(forward, (9, H * S)), (H, W, N * S))
    assert (fired(result)["project_segments"], moves(result)) == (1, 0)  # 3 segments of 3: k need not be h

    def cut(net: Net, x: Tensor) -> Tensor:
        rows = einops.rearrange(x, "b h w (n s) -> b n w (h s)", n=N)
        mixed = F.linear(rows, net.weights[0])  # b n w 9
        return mixed.flatten(1).unflatten(1, (27, 5)).mT  # 135 = 27 * 5 cuts across n = 5, w = 3 and 9

    result = prove(Net(cut, (9, H * S)), (H, W, N * S))
    assert fired(result)["project_segments"] == 0
    assert len(reasons(result, "project_segments")) == 1


def test_a_reshape_that_cuts_across_axes() -> None:
    """12 tokens seen as 8 by 9 of 6 channels: the rows of the linear are no axes of the tokens."""

    def forward(net: Net, x: Tensor) -> Tensor:
        rows = x.flatten(1).unflatten(1, (8, 9)).mT
        return F.linear(rows, net.weights[0]).mT.flatten(1).unflatten(1, (12, 6))

    result = prove(Net(forward, (8, 8)), (12, 6))
    assert fired(result)["project_segments"] == 0
    assert targets(result)[aten.linear.default] + fired(result)["project_tokens"] == 1


def test_a_transpose_read_as_a_reshape() -> None:
    """`view(b, c, t)` is no transpose, although the shapes are those of one."""

    def forward(net: Net, x: Tensor) -> Tensor:
        return net.tokens(x.reshape(-1, C, T)).reshape(-1, T, C) + x

    result = prove(Net(forward), (T, C))
    assert (fired(result)["project_tokens"], moves(result)) == (0, 0)


# Contractions that are no axis projection with a weight.

NO_WEIGHT: dict[str, tuple[Forward, tuple[tuple[int, ...], ...]]] = {
    "computed weight": (lambda net, x: F.linear(x.mT, torch.softmax(x.mean(0) @ net.weights[0], -1)).mT, ((C, T),)),
    "attention": (
        lambda net, x: torch.einsum("bts,bsc->btc", torch.softmax(torch.einsum("btc,bsc->bts", x, x), -1), x),
        (),
    ),
    "attention by matmul": (lambda net, x: (x @ x.mT).softmax(-1) @ x, ()),
    "one weight per channel": (lambda net, x: torch.einsum("btc,cut->buc", x, net.weights[0]), ((C, T, T),)),
    "one weight per channel, ellipsis": (
        lambda net, x: torch.einsum("...tc,uct->...uc", x, net.weights[0]),
        ((T, C, T),),
    ),
    "batched weights": (lambda net, x: (net.weights[0] @ x.unflatten(-1, (2, 2)).movedim(2, 1)).sum(1), ((2, T, T),)),
    "diagonal of the weight": (lambda net, x: torch.einsum("btc,tt->btc", x, net.weights[0]), ((T, T),)),
    "index summed out alone": (lambda net, x: torch.einsum("btc,ut->bu", x, net.weights[0]), ((T, T),)),
    "outer product": (lambda net, x: torch.einsum("btc,u->butc", x, net.weights[0]), ((T,),)),
    "kernel of three": (lambda net, x: F.conv1d(x, net.weights[0], padding=1), ((T, T, 3),)),
    "grouped kernel": (lambda net, x: F.conv1d(x, net.weights[0], groups=2), ((T, T // 2, 1),)),
    "kernel of one, padded": (lambda net, x: F.conv1d(x, net.weights[0], padding=1), ((T, T, 1),)),
    "kernel of one, strided": (lambda net, x: F.conv1d(x, net.weights[0], stride=2), ((T, T, 1),)),
    "vector": (lambda net, x: x @ net.weights[0], ((C,),)),
    "bilinear": (lambda net, x: torch.einsum("btc,bsc,ts->bc", x, x, net.weights[0]), ((T, T),)),
}
REFUSED = {
    "one weight per channel": "an index is kept by both operands: one weight per group",
    "one weight per channel, ellipsis": "an index is kept by both operands: one weight per group",
    "batched weights": "the weight is not one matrix",
    "diagonal of the weight": "an index is repeated in one operand",
    "index summed out alone": "an index of one operand is summed out alone",
    "outer product": "no index is contracted at its full size",
    "vector": "the weight is not one matrix",
}


@pytest.mark.parametrize("name", NO_WEIGHT)
def test_no_projection(name: str) -> None:
    forward, shapes = NO_WEIGHT[name]
    result = prove(Net(forward, *shapes), (T, C))
    assert (fired(result)["project_tokens"], fired(result)["project_segments"]) == (0, 0)
    assert reasons(result, "normalise_contractions") == ([REFUSED[name]] if name in REFUSED else [])
    if name != "computed weight":
        assert fired(result)["normalise_contractions"] == 0


# Views that are no rearrangement.

VIEWS: dict[str, Forward] = {
    "expand": lambda net, x: net.tokens(x.mean(1, keepdim=True).expand(-1, T, -1).mT).mT,
    "expand of a new axis": lambda net, x: net.tokens(x[:, None].expand(-1, 3, -1, -1).mT).mT.sum(1),
    "as_strided": lambda net, x: net.tokens(x.contiguous().as_strided((x.shape[0], C, T), (C * T, 1, C))).mT,
    "overlapping windows": lambda net, x: net.tokens(
        x.unfold(1, 3, 1).flatten(2).mT.mean(1, keepdim=True).expand(-1, T, -1).flatten(1).unflatten(1, (4, 6))
    ),
    "narrow": lambda net, x: net.channels(x.narrow(1, 1, 3)).mT,
    "every other token": lambda net, x: net.channels(x[:, ::2].mT.mT),
    "flip": lambda net, x: net.tokens(x.flip(1).mT).mT,
    "roll": lambda net, x: net.tokens(x.roll(2, 1).mT).mT,
    "diagonal": lambda net, x: net.channels(x.unflatten(1, (2, 3)).diagonal(dim1=1, dim2=2).mT),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_that_repeat_or_leave_out_elements(name: str) -> None:
    prove(Net(VIEWS[name]), (T, C))


@pytest.mark.parametrize("disabled", [(), ("remove_identities",)])
def test_channels_last_memory_is_no_layout_of_the_value(disabled: tuple[str, ...]) -> None:
    """`contiguous(memory_format=channels_last)` changes strides, not what the network sees."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return net.channels(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    prove(Net(forward), (C, 2, 3), disabled=disabled)


def test_casts_stay_and_do_not_stand_in_the_way() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        rows = net.norm(x).mT.to(torch.float16).to(torch.float32).tanh().double()
        return net.norm(net.tokens(rows).mT)

    result = prove(Net(forward), (T, C))
    assert (fired(result)["project_tokens"], moves(result)) == (1, 0)
    assert targets(result)[aten.to.dtype] == 3


def test_bits_read_as_another_dtype() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.norm(net.tokens(x.mT).mT.contiguous().view(torch.int64).view(torch.float64))

    assert fired(prove(Net(forward), (T, C)))["project_tokens"] == 1


def test_negative_dimensions_and_detours() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.tokens(x.unsqueeze(-3).transpose(-2, -1).movedim(-3, 0))
        return net.norm(y.movedim(-4, -3).transpose(-1, -2).squeeze(-3))

    result = prove(Net(forward), (T, C))
    assert (fired(result)["project_tokens"], moves(result)) == (1, 0)


# Sizes that coincide: only random, asymmetric weights tell a wrong axis from the right one.


def _permute_mlp(net: Net, x: Tensor) -> Tensor:
    """Height and width branches of (b, h, w, (n s)) with h = w = n = s."""
    size = x.shape[1]
    high = einops.rearrange(x, "b h w (n s) -> b n w (h s)", n=size)
    wide = einops.rearrange(x, "b h w (n s) -> b h n (w s)", n=size)
    high = einops.rearrange(F.linear(high, net.weights[0]), "b n w (h s) -> b h w (n s)", h=size)
    return high + einops.rearrange(F.linear(wide, net.weights[1]), "b h n (w s) -> b h w (n s)", w=size)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_all_sizes_alike(size: int) -> None:
    result = prove(
        Net(_permute_mlp, (size**2, size**2), (size**2, size**2)), (size, size, size**2), batches=(1, size, 5)
    )
    assert (fired(result)["project_segments"], moves(result)) == (2, 0)


def test_as_many_tokens_as_channels() -> None:
    """Mixing tokens, then channels, then the transposed result without going back."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = x + net.channels(x.mT).mT
        return x + net.channels(x) + net.channels(x.mT)

    result = prove(Net(forward), (C, C), batches=(1, 2, C, 7))
    assert fired(result)["project_tokens"] == 1
    assert moves(result) == 1


def test_a_square_grid_whose_sides_change_places() -> None:
    """Swapping height and width for good is no detour, though every shape stays the same."""

    def forward(net: Net, x: Tensor) -> Tensor:
        return net.channels(x.transpose(1, 2)) + x

    result = prove(Net(forward), (3, 3, C))
    assert moves(result) == 1


def test_a_batch_as_large_as_an_axis() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.tokens(x.permute(2, 0, 1)).permute(1, 2, 0) + x

    result = prove(Net(forward), (T, C), batches=(1, C, T, 3))
    assert (fired(result)["project_tokens"], moves(result)) == (1, 0)
