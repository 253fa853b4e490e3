"""However token mixing and Permute-MLP are spelled, their transposes go, and each projection is counted once."""

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


# Permute-MLP: (b, h, w, (n s)), with n segments of s channels; n is neither h, w nor s.

H, W, N, S = 2, 3, 5, 4
Branch = Callable[[Tensor, Tensor], Tensor]
"""(x, weight of (n*p, p*s) by (p*s)) to the mixed x, where p is the height or the width."""


def _h_permute(x: Tensor, weight: Tensor) -> Tensor:
    b, h, w, c = x.shape
    rows = x.reshape(b, h, w, N, S).permute(0, 3, 2, 1, 4).reshape(b, N, w, h * S)
    return F.linear(rows, weight).reshape(b, N, w, h, S).permute(0, 3, 2, 1, 4).reshape(b, h, w, c)


def _h_einops(x: Tensor, weight: Tensor) -> Tensor:
    rows = einops.rearrange(x, "b h w (n s) -> b n w (h s)", n=N)
    return einops.rearrange(F.linear(rows, weight), "b n w (h s) -> b h w (n s)", s=S)


def _h_rows(x: Tensor, weight: Tensor) -> Tensor:
    rows = einops.rearrange(x, "b h w (n s) -> (b w n) (h s)", n=N)
    return einops.rearrange(rows @ weight.T, "(b w n) (h s) -> b h w (n s)", s=S, n=N, w=W)


def _h_unflatten(x: Tensor, weight: Tensor) -> Tensor:
    rows = x.unflatten(-1, (N, S)).transpose(1, 3).flatten(-2)
    return F.linear(rows, weight).unflatten(-1, (H, S)).transpose(1, 3).flatten(-2)


def _h_movedim(x: Tensor, weight: Tensor) -> Tensor:
    rows = x.unflatten(3, (N, S)).movedim(1, 3).flatten(3)
    return F.linear(rows, weight).unflatten(3, (H, S)).movedim(3, 1).flatten(3)


def _h_swapaxes(x: Tensor, weight: Tensor) -> Tensor:
    rows = x.view(-1, H, W, N, S).swapaxes(1, 3).reshape(-1, N, W, H * S)
    return F.linear(rows, weight).view(-1, N, W, H, S).swapaxes(-2, -4).reshape(-1, H, W, N * S)


def _h_einsum(x: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("bhwns,kuhs->bkwnu", x.unflatten(-1, (N, S)), weight.view(H, S, H, S)).flatten(-2)


def _h_einsum_weight_first(x: Tensor, weight: Tensor) -> Tensor:
    factors = weight.view(H, S, H, S)
    return torch.einsum("zdyq,aypjq->azpjd", factors.permute(0, 1, 2, 3), x.unflatten(-1, (N, S))).flatten(-2)


def _h_packed_einsum(x: Tensor, weight: Tensor) -> Tensor:
    rows = x.unflatten(-1, (N, S)).permute(0, 2, 3, 1, 4).flatten(3)
    mixed = torch.einsum("...i,oi->...o", rows, weight)
    return mixed.unflatten(-1, (H, S)).permute(0, 3, 1, 2, 4).flatten(3)


def _h_einops_einsum(x: Tensor, weight: Tensor) -> Tensor:
    parts = einops.rearrange(x, "b h w (n s) -> b h w n s", n=N)
    mixed = einops.einsum(parts, weight.view(H, S, H, S), "b h w n s, k u h s -> b k w n u")
    return einops.rearrange(mixed, "b h w n s -> b h w (n s)")


def _h_tensordot(x: Tensor, weight: Tensor) -> Tensor:
    mixed = torch.tensordot(x.unflatten(-1, (N, S)), weight.view(H, S, H, S), dims=([1, 4], [2, 3]))
    return mixed.permute(0, 3, 1, 2, 4).flatten(-2)


def _h_channels_first(x: Tensor, weight: Tensor) -> Tensor:
    """As a Conv1d over the contracted axes, with the rest as its length."""
    rows = einops.rearrange(x, "b h w (n s) -> b (h s) (w n)", n=N)
    return einops.rearrange(F.conv1d(rows, weight[:, :, None]), "b (h s) (w n) -> b h w (n s)", s=S, n=N)


def _s_before_h(x: Tensor, weight: Tensor) -> Tensor:
    """Contracted in the other order: the weight's rows and columns are reindexed."""
    rows = einops.rearrange(x, "b h w (n s) -> b n w (s h)", n=N)
    return einops.rearrange(F.linear(rows, weight), "b n w (s h) -> b h w (n s)", s=S)


def _as_width(branch: Branch) -> Branch:
    """The height branch of the transposed grid; the transposes are further views."""
    return lambda x, weight: branch(x.transpose(1, 2), weight).transpose(1, 2)


def _w_permute(x: Tensor, weight: Tensor) -> Tensor:
    b, h, w, c = x.shape
    rows = x.reshape(b, h, w, N, S).permute(0, 1, 3, 2, 4).reshape(b, h, N, w * S)
    return F.linear(rows, weight).reshape(b, h, N, w, S).permute(0, 1, 3, 2, 4).reshape(b, h, w, c)


def _w_unflatten(x: Tensor, weight: Tensor) -> Tensor:
    rows = x.unflatten(-1, (N, S)).transpose(2, 3).flatten(-2)
    return F.linear(rows, weight).unflatten(-1, (W, S)).transpose(2, 3).flatten(-2)


def _w_images(x: Tensor, weight: Tensor) -> Tensor:
    """Rows of the image counted to the batch."""
    rows = einops.rearrange(x, "b h w (n s) -> (b h) n (w s)", n=N)
    return einops.rearrange(F.linear(rows, weight), "(b h) n (w s) -> b h w (n s)", s=S, h=H)


def _w_einops(x: Tensor, weight: Tensor) -> Tensor:
    rows = einops.rearrange(x, "b h w (n s) -> b h n (w s)", n=N)
    return einops.rearrange(F.linear(rows, weight), "b h n (w s) -> b h w (n s)", s=S)


def _w_einsum(x: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("...wns,kuws->...knu", x.unflatten(-1, (N, S)), weight.view(W, S, W, S)).flatten(-2)


def _w_tensordot(x: Tensor, weight: Tensor) -> Tensor:
    mixed = torch.tensordot(weight.view(W, S, W, S), x.unflatten(-1, (N, S)), dims=([2, 3], [2, 4]))
    return einops.rearrange(mixed, "k u b h n -> b h k (n u)")


HEIGHT: dict[str, Branch] = {
    "reshape and permute": _h_permute,
    "einops.rearrange": _h_einops,
    "einops to rows": _h_rows,
    "unflatten, transpose, flatten": _h_unflatten,
    "movedim": _h_movedim,
    "view and swapaxes": _h_swapaxes,
    "einsum": _h_einsum,
    "einsum, weight first, odd letters": _h_einsum_weight_first,
    "einsum on packed rows": _h_packed_einsum,
    "einops.einsum": _h_einops_einsum,
    "tensordot": _h_tensordot,
    "Conv1d": _h_channels_first,
    "s before h": _s_before_h,
}
WIDTH: dict[str, Branch] = {
    "reshape and permute": _w_permute,
    "unflatten, transpose, flatten": _w_unflatten,
    "rows of the image in the batch": _w_images,
    "einops.rearrange": _w_einops,
    "einsum, ellipsis": _w_einsum,
    "tensordot, weight first": _w_tensordot,
}


class Permutator(nn.Module):
    """One Permute-MLP block with the branches given, on (b, h, w, n s), between LayerNorms and residuals."""

    def __init__(self, *branches: tuple[Branch, int]) -> None:
        super().__init__()
        self.branches = [branch for branch, _ in branches]
        self.weights = nn.ParameterList(torch.empty(length * S, length * S) for _, length in branches)
        self.channels, self.proj = nn.Linear(N * S, N * S), nn.Linear(N * S, N * S)
        self.norm, self.last = nn.LayerNorm(N * S), nn.LayerNorm(N * S)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        mixed = self.channels(y)
        for branch, weight in zip(self.branches, self.weights, strict=True):
            mixed = mixed + branch(y, weight)
        return self.last(x + self.proj(mixed))


@pytest.mark.parametrize("spelling", HEIGHT)
def test_height_branch(spelling: str) -> None:
    result = prove(Permutator((HEIGHT[spelling], H)), (H, W, N * S))
    assert fired(result)["project_segments"] == 1
    assert fired(result)["project_tokens"] == 0
    assert moves(result) == 0


@pytest.mark.parametrize("spelling", WIDTH)
def test_width_branch(spelling: str) -> None:
    result = prove(Permutator((WIDTH[spelling], W)), (H, W, N * S))
    assert fired(result)["project_segments"] == 1
    assert moves(result) == 0


@pytest.mark.parametrize("spelling", ["reshape and permute", "einsum", "tensordot", "einops.rearrange"])
def test_both_branches(spelling: str) -> None:
    width = _as_width(HEIGHT[spelling])
    square = (2, 2, N * S)
    result = prove(Permutator((HEIGHT[spelling], 2), (width, 2)), square)
    assert fired(result)["project_segments"] == 2
    assert moves(result) == 0
