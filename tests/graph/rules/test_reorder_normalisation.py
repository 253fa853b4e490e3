"""LayerNorms of rearranged channels move in front of the rearrangement, and others stay where they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.graph.proof import fired, moves, prove, reasons

RULE = "reorder_normalisation"
Arrange = Callable[[Tensor], Tensor]


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


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("there", [_swapped, _tokens_too])
def test_permuted_channels_are_normalised_as_they_lie(there: Arrange, affine: bool) -> None:
    result = prove(Net(there, _swapped_back, affine=affine), (5, 6))
    assert fired(result)[RULE] == 1
    assert moves(result) == 0


def test_the_order_of_the_affine_parameters_is_kept() -> None:
    result = prove(Net(_swapped, _same), (5, 6))
    assert fired(result)[RULE] == 1


def _mixed_with_tokens(x: Tensor) -> Tensor:
    """Six numbers of which two are neighbouring tokens and three are channels."""
    return x.reshape(x.shape[0], 2, 2, 2, 3).permute(0, 1, 3, 2, 4).reshape(x.shape[0], 4, 6)


def _split(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], 8, 3).reshape(x.shape[0], 4, 6)


@pytest.mark.parametrize("there", [_same, _mixed_with_tokens, _split])
def test_other_norms_stay_where_they_are(there: Arrange) -> None:
    result = prove(Net(there, _same), (4, 6))
    assert fired(result)[RULE] == 0
    assert not reasons(result, RULE)


class Computed(nn.Module):
    """A norm whose scale depends on the input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.layer_norm(_swapped(x), [6], weight=x[0, 0], bias=None)


def test_affine_parameters_from_the_inputs_are_refused() -> None:
    result = prove(Computed(), (4, 6))
    assert fired(result)[RULE] == 0
    assert reasons(result, RULE) == ["its affine parameters are computed from the inputs"]
