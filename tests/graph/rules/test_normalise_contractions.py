"""normalise_contractions: contractions that are no projection with one weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mlpdeploy.graph.rewrite import Rewritten
from tests.graph.proof import fired
from tests.graph.rules.examples import Example, Layers, NearMiss, Shape, Tokens

T, C = Layers.T, Layers.C

EXAMPLE = Example(Tokens, (T, C), fires=1)


def unprojected(result: Rewritten) -> bool:
    return not fired(result)["project_tokens"] and not fired(result)["project_segments"]


def near_miss(run: Callable[[Layers, Tensor], Tensor], *shapes: Shape, why: str | None = None) -> NearMiss:
    return NearMiss(lambda: Layers(run, *shapes), (T, C), () if why is None else (why,), holds=unprojected)


GROUPS, ONE = "an index is kept by both operands: one weight per group", "the weight is not one matrix"
NEAR_MISSES = {
    "attention": near_miss(
        lambda net, x: torch.einsum("bts,bsc->btc", torch.softmax(torch.einsum("btc,bsc->bts", x, x), -1), x)
    ),
    "attention by matmul": near_miss(lambda net, x: (x @ x.mT).softmax(-1) @ x),
    "one weight per channel": near_miss(
        lambda net, x: torch.einsum("btc,cut->buc", x, net.weights[0]), (C, T, T), why=GROUPS
    ),
    "one weight per channel, ellipsis": near_miss(
        lambda net, x: torch.einsum("...tc,uct->...uc", x, net.weights[0]), (T, C, T), why=GROUPS
    ),
    "batched weights": near_miss(
        lambda net, x: (net.weights[0] @ x.unflatten(-1, (2, 2)).movedim(2, 1)).sum(1), (2, T, T), why=ONE
    ),
    "diagonal of the weight": near_miss(
        lambda net, x: torch.einsum("btc,tt->btc", x, net.weights[0]), (T, T), why="an index is repeated in one operand"
    ),
    "index summed out alone": near_miss(
        lambda net, x: torch.einsum("btc,ut->bu", x, net.weights[0]),
        (T, T),
        why="an index of one operand is summed out alone",
    ),
    "outer product": near_miss(
        lambda net, x: torch.einsum("btc,u->butc", x, net.weights[0]),
        (T,),
        why="no index is contracted at its full size",
    ),
    "kernel of three": near_miss(lambda net, x: F.conv1d(x, net.weights[0], padding=1), (T, T, 3)),
    "grouped kernel": near_miss(lambda net, x: F.conv1d(x, net.weights[0], groups=2), (T, T // 2, 1)),
    "kernel of one, padded": near_miss(lambda net, x: F.conv1d(x, net.weights[0], padding=1), (T, T, 1)),
    "kernel of one, strided": near_miss(lambda net, x: F.conv1d(x, net.weights[0], stride=2), (T, T, 1)),
    "vector": near_miss(lambda net, x: x @ net.weights[0], (C,), why=ONE),
    "bilinear": near_miss(lambda net, x: torch.einsum("btc,bsc,ts->bc", x, x, net.weights[0]), (T, T)),
}
