"""However token mixing is spelled, its transposes go, and each projection is counted once."""

from __future__ import annotations

from collections.abc import Callable

import einops
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.proof import fired, moves, prove

TOKENS, HIDDEN, CHANNELS = 6, 5, 4
GRID = (2, 3)
Mixing = Callable[[Tensor, nn.Linear, nn.Linear], Tensor]


def _through(there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Mixing:
    """Both linear layers between two rearrangements."""
    return lambda x, first, second: back(second(F.gelu(first(there(x)))))


def _contracted(contract: Callable[[Tensor, Tensor], Tensor]) -> Mixing:
    """A contraction of the token axis of (b, t, c) with a weight, spelled once and used for both layers; no bias."""
    return lambda x, first, second: contract(F.gelu(contract(x, first.weight)), second.weight)


def _rows(x: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
    b, t, c = x.shape
    rows = x.permute(0, 2, 1).reshape(b * c, t)
    return second(F.gelu(first(rows))).view(b, c, t).permute(0, 2, 1)


def _grid(x: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
    rows = x.unflatten(1, GRID).permute(0, 3, 1, 2).flatten(2)
    return second(F.gelu(first(rows))).unflatten(-1, GRID).permute(0, 2, 3, 1).flatten(1, 2)


def _biased(x: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
    hidden = F.gelu(first.weight @ x + first.bias[:, None])
    return second.weight @ hidden + second.bias[:, None]


def _both_sides_transposed(x: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
    hidden = F.gelu(torch.einsum("btc,ht->bch", x, first.weight) + first.bias)
    return torch.einsum("bch,th->btc", hidden, second.weight) + second.bias[:, None]


def _tensordot_first(x: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
    hidden = F.gelu(torch.tensordot(first.weight, x, dims=([1], [1])))
    return torch.tensordot(second.weight, hidden, dims=1).movedim(0, 1)


def _convolutions(x: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
    hidden = F.gelu(F.conv1d(x, first.weight[:, :, None], first.bias))
    return F.conv1d(hidden, second.weight.unsqueeze(-1), second.bias)


def _with_detours(x: Tensor, first: nn.Linear, second: nn.Linear) -> Tensor:
    there = x[:, None].transpose(-1, -2).contiguous().squeeze(1).clone()
    return second(F.dropout(F.gelu(first(there)), 0.5, training=False)).unsqueeze(0).swapdims(2, 3)[0]


TOKEN_MIXING: dict[str, Mixing] = {
    "transpose": _through(lambda x: x.transpose(1, 2), lambda y: y.transpose(1, 2)),
    "negative transpose": _through(lambda x: x.transpose(-1, -2), lambda y: y.transpose(-2, -1)),
    "permute": _through(lambda x: x.permute(0, 2, 1), lambda y: y.permute([0, 2, 1])),
    "torch.permute then transpose": _through(
        lambda x: torch.permute(x, (0, -1, 1)), lambda y: torch.transpose(y, 1, 2)
    ),
    "movedim": _through(lambda x: x.movedim(1, -1), lambda y: y.movedim(-1, 1)),
    "moveaxis": _through(lambda x: torch.moveaxis(x, (1, 2), (2, 1)), lambda y: torch.moveaxis(y, 2, 1)),
    "swapaxes": _through(lambda x: x.swapaxes(1, 2), lambda y: torch.swapaxes(y, -1, -2)),
    "mT": _through(lambda x: x.mT, lambda y: y.mT),
    "adjoint": _through(lambda x: x.adjoint(), lambda y: y.mH),
    "contiguous": _through(lambda x: x.transpose(1, 2).contiguous(), lambda y: y.transpose(1, 2).contiguous()),
    "einops.rearrange": _through(
        lambda x: einops.rearrange(x, "b t c -> b c t"), lambda y: einops.rearrange(y, "batch c token -> batch token c")
    ),
    "einops over a grid": _through(
        lambda x: einops.rearrange(x, "b (h w) c -> b c (h w)", h=2),
        lambda y: einops.rearrange(y, "b c (h w) -> b (h w) c", w=3),
    ),
    "rows of one matrix": _rows,
    "flatten and unflatten": _grid,
    "detours": _with_detours,
    "W @ x": _contracted(lambda x, w: w @ x),
    "torch.matmul with bias": _biased,
    "x.mT @ W.T": _contracted(lambda x, w: (x.mT @ w.T).mT),
    "F.linear": _contracted(lambda x, w: F.linear(x.transpose(1, 2), w).transpose(1, 2)),
    "einsum": _contracted(lambda x, w: torch.einsum("btc,ut->buc", x, w)),
    "einsum, weight first": _contracted(lambda x, w: torch.einsum("ut,btc->buc", w, x)),
    "einsum, ellipsis": _contracted(lambda x, w: torch.einsum("...tc,ut->...uc", x, w)),
    "einsum, weight first, ellipsis": _contracted(lambda x, w: torch.einsum("ij, ...jk -> ...ik", w, x)),
    "einsum, odd letters": _contracted(lambda x, w: torch.einsum("zQa,mQ->zma", x, w)),
    "einsum, transposed weight": _contracted(lambda x, w: torch.einsum("tu,bta->bua", w.T, x)),
    "einsum to transposed": _both_sides_transposed,
    "einops.einsum": _contracted(lambda x, w: einops.einsum(x, w, "b token c, out token -> b out c")),
    "einops.einsum, ellipsis": _contracted(lambda x, w: einops.einsum(w, x, "out token, ... token c -> ... out c")),
    "tensordot": _contracted(lambda x, w: torch.tensordot(x, w, dims=([1], [1])).transpose(1, 2)),
    "tensordot, weight first": _tensordot_first,
    "Conv1d": _convolutions,
}


class Mixer(nn.Module):
    """Two Mixer blocks on (b, t, c), their token mixing spelled by `mixing`."""

    def __init__(self, mixing: Mixing) -> None:
        super().__init__()
        self.mixing = mixing
        self.norms = nn.ModuleList(nn.LayerNorm(CHANNELS) for _ in range(5))
        self.first = nn.ModuleList(nn.Linear(TOKENS, HIDDEN) for _ in range(2))
        self.second = nn.ModuleList(nn.Linear(HIDDEN, TOKENS) for _ in range(2))
        self.channels = nn.ModuleList(nn.Linear(CHANNELS, CHANNELS) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in range(2):
            x = x + self.mixing(self.norms[2 * block](x), self.first[block], self.second[block])
            x = x + self.channels[block](self.norms[2 * block + 1](x))
        return self.norms[4](x).mean(1)


@pytest.mark.parametrize("spelling", TOKEN_MIXING)
def test_both_layers_of_each_token_mlp_are_projected(spelling: str) -> None:
    result = prove(Mixer(TOKEN_MIXING[spelling]), (TOKENS, CHANNELS))
    assert fired(result)["project_tokens"] == 4
    assert fired(result)["project_segments"] == 0
    assert moves(result) == 0


class ChannelsFirst(nn.Module):
    """The stream lies as (b, c, t): channels are mixed by Conv1d, tokens by a linear on the last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.up, self.down = nn.Linear(TOKENS, TOKENS), nn.Conv1d(4, 7, 1), nn.Conv1d(7, 4, 1)
        self.norm = nn.BatchNorm1d(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm(x))
        return x + self.down(F.gelu(self.up(x)))


def test_convolutions_over_the_first_axis_are_left_products() -> None:
    result = prove(ChannelsFirst(), (CHANNELS, TOKENS))
    assert (fired(result)["project_tokens"], moves(result)) == (2, 0)


class Axial(nn.Module):
    """Mixing along the height, then along the width, of (b, h, w, c)."""

    def __init__(self, height: Callable[[Tensor], Tensor], width: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.h, self.w = nn.LayerNorm(4), nn.Linear(2, 2), nn.Linear(3, 3)
        self.to_height, self.to_width = height, width

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.to_height(self.h(self.to_height(self.norm(x))))
        return self.norm(x + self.to_width(self.w(self.to_width(x))))


@pytest.mark.parametrize(
    ("height", "width"),
    [
        (lambda x: x.transpose(1, 3), lambda x: x.transpose(2, 3)),
        (lambda x: x.permute(0, 3, 2, 1), lambda x: x.mT),
        (lambda x: einops.rearrange(x, "b i w j -> b j w i"), lambda x: einops.rearrange(x, "b h w c -> b h c w")),
    ],
    ids=["transpose", "permute", "einops"],
)
def test_axial_mixing(height: Callable[[Tensor], Tensor], width: Callable[[Tensor], Tensor]) -> None:
    result = prove(Axial(height, width), (2, 3, 4))
    assert (fired(result)["project_tokens"], moves(result)) == (2, 0)
