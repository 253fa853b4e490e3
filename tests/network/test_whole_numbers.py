"""Inputs of 8, 16 and 32 bits: what wraps around is refused, what comes out the same in 64 bits is taken."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlpdeploy.errors import NetworkError
from mlpdeploy.network.in_hand import source_of_network
from mlpdeploy.network.whole_numbers import require_no_wrapping

Function = Callable[[Tensor], Tensor]


class Applied(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function, self.head = function, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.function(x).float())
        return result


def tried(function: Function, dtype: torch.dtype, low: int = 0, high: int = 100) -> None:
    rows = torch.randint(low, high, (4, 8), generator=torch.Generator().manual_seed(0)).to(dtype)
    require_no_wrapping(Applied(function), {"x": rows.numpy()})


WRAPPING: dict[str, tuple[Function, str]] = {
    "sub": (lambda x: x - 128, "sub"),
    "add": (lambda x: x + x, "add"),
    "mul": (lambda x: x * 3, "mul"),
    "shift": (lambda x: x << 2, "lshift"),
    "neg": (lambda x: -x, "neg"),
    "not": (lambda x: ~x, "bitwise_not"),
    "rsub": (lambda x: 1 - x, "rsub"),
    "behind a view": (lambda x: (x.view(-1, 2, 4).flatten(1) * 2) * 2, "mul"),
    "in place": (lambda x: x.clone().add_(200), "add_"),
}


@pytest.mark.parametrize("what", WRAPPING)
@pytest.mark.parametrize("dtype", [torch.uint8])
def test_what_wraps_around_is_refused(what: str, dtype: torch.dtype) -> None:
    function, name = WRAPPING[what]
    with pytest.raises(NetworkError, match=rf"computes \w*{name.strip('_')}\w* in uint8, whose numbers wrap around"):
        tried(function, dtype)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16])
def test_it_is_found_for_numbers_that_the_example_lacks(dtype: torch.dtype) -> None:
    with pytest.raises(NetworkError, match="computes mul in int"):
        require_no_wrapping(Applied(lambda x: x * x), {"x": np.zeros((2, 8), str(dtype).removeprefix("torch."))})


def test_of_32_bits_only_what_the_example_holds_counts() -> None:
    tried(lambda x: x * x + 7, torch.int32)
    with pytest.raises(NetworkError, match="computes mul in int32"):
        tried(lambda x: x * 2654435 % 7, torch.int32, high=10**9)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.float() - 128,
        lambda x: x / 255 - 0.5,
        lambda x: x.long() * 3 - 500,
        lambda x: x.to(torch.int16) - 300,
        lambda x: x.to(torch.int8) * 2,  # which the network says itself, and the graph with it
        lambda x: x // 3 + x % 2,
        lambda x: (x >> 1) & 15,
        lambda x: x.clamp(3, 9).flip(-1),
        lambda x: torch.where(x > 100, x, torch.zeros_like(x)),
        lambda x: x.sum(-1, keepdim=True).expand(-1, 8),
        lambda x: x.sort(-1).values,
    ],
)
def test_what_is_the_same_in_64_bits_is_taken(function: Function) -> None:
    tried(function, torch.uint8, high=256)


def test_an_index_that_would_be_too_large_is_no_error_of_its_own() -> None:
    table = nn.Embedding(10, 8)
    require_no_wrapping(Applied(lambda x: table(x.int()).mean(1)), {"x": np.ones((2, 8), np.uint8)})


def test_a_network_in_hand_is_asked() -> None:
    rows = torch.randint(0, 256, (4, 8), dtype=torch.uint8)
    with pytest.raises(NetworkError, match="make them real ones first"):
        source_of_network(Applied(lambda x: x - 128).eval(), rows, "given")
    assert source_of_network(Applied(lambda x: x.float() - 128).eval(), rows, "given").recipe.inputs[0].dtype == "int64"
