"""project_tokens: products from the left, and transposes that are needed: what comes after wants the tokens last."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpdeploy.graph.rewrite import Rewritten
from tests.graph.proof import fired, moves, prove, reasons
from tests.graph.rules.examples import Example, Layers, NearMiss

T, C = Layers.T, Layers.C
Run = Callable[[Layers, Tensor], "Tensor | tuple[Tensor, ...]"]


class Patches(nn.Module):
    """Patch embedding of an image, a token-mixing block, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tokens, self.head = nn.Conv2d(3, 4, 2, 2), nn.Linear(6, 6), nn.Linear(4, 3)
        self.norm = nn.LayerNorm(4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).transpose(1, 2)
        return self.head((x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)).mean(1))


EXAMPLE = Example(Patches, (3, 4, 6), fires=1)


def _disagreeing(net: Layers, x: Tensor) -> tuple[Tensor, Tensor]:
    """One consumer wants tokens last, one wants channels last: the linear runs on the transposed input, as written."""
    mixed = net.tokens(net.norm(x).mT)
    return net.across(mixed), net.norm(mixed.mT)


def _disagreeing_on_both_sides(net: Layers, x: Tensor) -> tuple[Tensor, Tensor]:
    rows = net.norm(x).mT
    mixed = net.tokens(rows) + net.across(rows)
    return net.norm(mixed.mT), net.across(mixed)


def _over_channels(net: Layers, x: Tensor) -> Tensor:
    """Permuted to b w h c, and the linear is over c: nothing but channel mixing."""
    return net.channels(x.transpose(1, 2)).transpose(1, 2) + x


def _no_contraction_refused(result: Rewritten) -> bool:
    return not fired(result)["project_segments"] and not reasons(result, "normalise_contractions")


def near_miss(run: Run, *why: str, left: int | None = None) -> NearMiss:
    """`left`: how many operations that move data are left."""
    return NearMiss(
        lambda: Layers(run), (T, C), why, holds=None if left is None else lambda result: moves(result) == left
    )


WANTED = "its consumers want the result as (batch 4 6): a transpose is needed"
NEAR_MISSES = {
    "returned transposed": near_miss(lambda net, x: net.tokens(net.norm(x).mT), WANTED, left=1),
    "normalised over tokens": near_miss(lambda net, x: net.across(net.tokens(net.norm(x).mT)), WANTED, left=1),
    "normalised over tokens, and back": near_miss(
        lambda net, x: net.across(net.tokens(net.norm(x).mT)).mT, WANTED, left=2
    ),
    "consumers that disagree": near_miss(_disagreeing, "its consumers want different layouts", left=2),
    "both sides disagree": near_miss(_disagreeing_on_both_sides, WANTED),
    # `view(b, c, t)` is no transpose, although the shapes are those of one.
    "a transpose read as a reshape": near_miss(
        lambda net, x: net.tokens(x.reshape(-1, C, T)).reshape(-1, T, C) + x, left=0
    ),
    "channels of a permuted grid": NearMiss(
        lambda: Layers(_over_channels),
        (2, 3, C),
        holds=lambda result: (fired(result)["project_segments"], moves(result)) == (0, 0),
    ),
    "a weight that is computed": NearMiss(
        lambda: Layers(lambda net, x: F.linear(x.mT, torch.softmax(x.mean(0) @ net.weights[0], -1)).mT, (C, T)),
        (T, C),
        holds=_no_contraction_refused,
    ),
}


def test_two_linears_over_tokens_whose_result_is_returned_need_one_transpose_wherever_it_is() -> None:
    network = Layers(lambda net, x: net.tokens(F.gelu(net.tokens(net.norm(x).mT))))
    assert moves(prove(network, (T, C))) == 1


def test_softmax_over_tokens_needs_no_transpose() -> None:
    """Softmax works along any axis as it lies, so here the transpose goes."""
    result = prove(Layers(lambda net, x: net.norm(torch.softmax(net.tokens(x.mT), -1).mT)), (T, C))
    assert (fired(result)["project_tokens"], moves(result)) == (1, 0)


def test_input_that_another_consumer_wants_transposed() -> None:
    """The transposed input is made for the LayerNorm; the product from the left still reads what lies in memory."""

    def forward(net: Layers, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = net.norm(x).mT
        return net.norm(net.tokens(rows).mT), net.across(rows)

    result = prove(Layers(forward), (T, C))
    assert (fired(result)["project_tokens"], moves(result)) == (1, 1)


def test_a_disagreement_at_the_end_does_not_reach_the_blocks_before() -> None:
    """The last sum is computed as it is seen, so the token mixing that feeds it is projected all the same."""

    def forward(net: Layers, x: Tensor) -> tuple[Tensor, Tensor]:
        for _ in range(2):
            x = x + net.tokens(net.norm(x).mT).mT
        return net.norm(x), net.across(x.mT)

    result = prove(Layers(forward), (T, C))
    assert (fired(result)["project_tokens"], moves(result)) == (2, 1)
