"""LayerNorms of rearranged channels move in front of the rearrangement, and others stay where they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.graph.proof import fired, moves, prove
from tests.graph.rules.examples import Example, NearMiss, rafts

RULE = "reorder_normalisation"
Arrange = Callable[[Tensor], Tensor]

EXAMPLE = Example(rafts, (3, 8, 8), fires=2)


class Net(nn.Module):
    """A norm of rearranged channels, rearranged back, between linears."""

    def __init__(self, there: Arrange, back: Arrange, *, affine: bool = True) -> None:
        super().__init__()
        self.there, self.back = there, back
        self.first, self.norm, self.last = nn.Linear(6, 6), nn.LayerNorm(6, elementwise_affine=affine), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.back(self.norm(self.there(self.first(x)))))


def _swapped(x: Tensor) -> Tensor:
    return x.unflatten(2, (2, 3)).transpose(2, 3).flatten(2)


def _swapped_back(x: Tensor) -> Tensor:
    return x.unflatten(2, (3, 2)).transpose(2, 3).flatten(2)


def _tokens_too(x: Tensor) -> Tensor:
    return x.unflatten(2, (2, 3)).permute(0, 3, 2, 1).reshape(x.shape[0], 3, 2, -1).permute(0, 3, 1, 2).flatten(2)


def _same(x: Tensor) -> Tensor:
    return x


def _mixed_with_tokens(x: Tensor) -> Tensor:
    """Six numbers of which two are neighbouring tokens and three are channels."""
    return x.reshape(x.shape[0], 2, 2, 2, 3).permute(0, 1, 3, 2, 4).reshape(x.shape[0], 4, 6)


def _split(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], 8, 3).reshape(x.shape[0], 4, 6)


class Computed(nn.Module):
    """A norm whose scale depends on the input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.layer_norm(_swapped(x), [6], weight=x[0, 0], bias=None)


NEAR_MISSES = {
    "as they lie": NearMiss(lambda: Net(_same, _same), (4, 6)),
    "mixed with tokens": NearMiss(lambda: Net(_mixed_with_tokens, _same), (4, 6)),
    "cut and joined": NearMiss(lambda: Net(_split, _same), (4, 6)),
    "affine parameters from the inputs": NearMiss(
        Computed, (4, 6), ("its affine parameters are computed from the inputs",)
    ),
}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("there", [_swapped, _tokens_too])
def test_permuted_channels_are_normalised_as_they_lie(there: Arrange, affine: bool) -> None:
    result = prove(Net(there, _swapped_back, affine=affine), (5, 6))
    assert fired(result)[RULE] == 1
    assert moves(result) == 0


def test_the_order_of_the_affine_parameters_is_kept() -> None:
    result = prove(Net(_swapped, _same), (5, 6))
    assert fired(result)[RULE] == 1
