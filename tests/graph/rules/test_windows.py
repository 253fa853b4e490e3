"""Windows of a grid: rolls, parts of one projection, and projections of tensors that have to move."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.proof import fired, moves, prove, reasons, targets

aten = torch.ops.aten


class Rolled(nn.Module):
    """A roll, given as torch takes it."""

    def __init__(self, shifts: int | tuple[int, ...], dims: tuple[int, ...] | None) -> None:
        super().__init__()
        self.shifts, self.dims, self.head = shifts, dims, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.roll(x, self.shifts, self.dims or ()))


class Attention(nn.Module):
    """Attention in windows of 2x2 tokens, the three parts of one projection taken as `take` says."""

    def __init__(self, take: str = "unbind") -> None:
        super().__init__()
        self.take, self.qkv, self.proj = take, nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        windows = x.reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b * h * w // 4, 4, c)
        parts = self.qkv(windows).reshape(b * h * w // 4, 4, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        if self.take == "list":
            return torch.stack(list(parts.unbind(0)), -1)
        q, k, v = (parts[0], parts[1], parts[2]) if self.take == "select" else parts.unbind(0)
        y = ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(b * h * w // 4, 4, c)
        y = self.proj(y).reshape(b, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5)
        return y.reshape(b, h, w, c)


@pytest.mark.parametrize(
    ("shifts", "dims", "count"),
    [((-1, 2), (1, 2), 1), ((1, 1, 1), (1, 2, -1), 1), ((7, -7), (2, 1), 1), ((1,), (2,), 0)],
)
def test_rolls_along_several_dimensions_are_one_gather_each(
    shifts: tuple[int, ...], dims: tuple[int, ...], count: int
) -> None:
    found = prove(Rolled(shifts, dims), (3, 5, 4))
    assert fired(found)["decompose_rolls"] == count
    assert targets(found)[aten.roll.default] == 0
    assert targets(found)[aten.index_select.default] == len(dims)


def test_a_roll_of_the_flattened_tensor_stays() -> None:
    """Its elements pass from one image to the next."""
    found = prove(Rolled(3, None), (3, 5, 4))
    assert fired(found)["decompose_rolls"] == 0
    assert targets(found)[aten.roll.default] == 1


@pytest.mark.parametrize(("take", "count"), [("unbind", 1), ("select", 0)])
def test_parts_of_one_projection_are_selected(take: str, count: int) -> None:
    found = prove(Attention(take), (4, 6, 8))
    assert fired(found)["pick_parts"] == count
    assert targets(found)[aten.unbind.int] == 0
    assert targets(found)[aten.select.int] == 3


class Parts(nn.Module):
    """Two parts of an unbound tensor, one of them twice and counted from the end."""

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unbind(-1)
        return parts[-1] * parts[0] + F.gelu(parts[-1])


def test_a_part_that_is_read_twice_is_selected_and_the_others_are_not() -> None:
    found = prove(Parts(), (3, 5))
    assert fired(found)["pick_parts"] == 1
    assert targets(found)[aten.select.int] == 2


def test_parts_that_are_stacked_again() -> None:
    assert fired(prove(Attention("list"), (4, 6, 8)))["pick_parts"] == 1


def test_windows_and_heads_move_once_on_either_side() -> None:
    """In: windows, heads and parts at once, and the keys. Out: heads and windows at once."""
    found = prove(Attention(), (4, 6, 8))
    assert moves(found) == 3
    assert len(reasons(found, "project_segments")) == 1  # the projection behind: heads first, then tokens


class Halves(nn.Module):
    """A projection in windows, read as it is seen, and as a grid."""

    def __init__(self, grid: bool) -> None:
        super().__init__()
        self.grid, self.inner, self.norm = grid, nn.Linear(4, 4), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        b, h, w, c = x.shape
        windows = self.inner(x.reshape(b, h // 2, 2, w, c).permute(0, 1, 3, 2, 4).reshape(b * h * w // 2, 2, c))
        back = windows.reshape(b, h // 2, w, 2, c).permute(0, 1, 3, 2, 4).reshape(b, h, w, c)
        return (back, windows.sum(1).reshape(b, h // 2, w, c)) if self.grid else self.norm(windows).reshape(b, -1)


def test_a_partition_and_its_reverse_vanish_around_a_projection() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.halves = Halves(grid=True)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.halves(x)[0]

    assert moves(prove(Pair(), (4, 3, 4))) == 0


def test_a_partition_that_is_read_as_it_is_seen_moves_once() -> None:
    assert moves(prove(Halves(grid=False), (4, 3, 4))) == 1
