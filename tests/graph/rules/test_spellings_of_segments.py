"""However Permute-MLP is spelled, its transposes go, and each projection is counted once."""

from __future__ import annotations

from collections.abc import Callable

import einops
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.proof import fired, moves, prove

H, W, N, S = 2, 3, 5, 4
"""Of (b, h, w, (n s)), with n segments of s channels; n is neither h, w nor s."""

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
