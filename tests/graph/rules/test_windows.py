"""Windows of a grid: how often an attention in windows moves its tokens, and a partition that is taken back."""

from __future__ import annotations

from torch import Tensor, nn

from tests.graph.proof import moves, prove, reasons
from tests.graph.rules.examples import Attention


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
