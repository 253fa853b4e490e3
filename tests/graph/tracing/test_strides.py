"""Reads by strides: picks where each row reads from itself, one line where memory decides."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mlpdeploy.errors import NetworkError
from mlpdeploy.graph.tracing.trace import trace
from tests.graph.proof import aten, prove, specs, targets

Forward = Callable[[Tensor], Tensor]

READS: dict[str, Forward] = {
    "a part": lambda x: x.as_strided((x.shape[0], 2, 5, 6), (60, 30, 6, 1)),
    "from further on": lambda x: x.as_strided((x.shape[0], 2, 4, 6), (60, 30, 6, 1), 6),
    "windows that overlap": lambda x: torch.as_strided(x, (x.shape[0], 2, 3, 3, 6), (60, 30, 6, 6, 1)),
    "transposed": lambda x: x.as_strided((x.shape[0], 6, 10), (60, 1, 6)),
    "one element again and again": lambda x: x.as_strided((x.shape[0], 4, 3), (60, 0, 0)),
    "made contiguous": lambda x: x.mT.contiguous().as_strided((x.shape[0], 2, 6, 5), (60, 30, 5, 1)),
    "by its own strides": lambda x: x.as_strided(x.shape, x.stride()),
}

REFUSED: dict[str, tuple[Forward, str]] = {
    "across rows": (lambda x: x.as_strided((x.shape[0], 60), (1, 1)), "across rows"),
    "the row behind": (lambda x: x[:-1].as_strided((x.shape[0] - 1, 60), (60, 1), 60), "across rows|not contiguous"),
    "not contiguous": (lambda x: x.mT.as_strided((x.shape[0], 60), (60, 1)), "not contiguous"),
    "a view with an offset": (lambda x: x[:, 1].as_strided((x.shape[0], 30), (30, 1)), "not contiguous"),
    "the batch as another axis": (lambda x: x.as_strided((60, x.shape[0]), (1, 60)), "depend on the batch|across rows"),
}


class Net(nn.Module):
    def __init__(self, read: Forward) -> None:
        super().__init__()
        self.read = read
        self.table = nn.Parameter(torch.empty(12))

    def forward(self, x: Tensor) -> Tensor:
        return self.read(x.square())


@pytest.mark.parametrize("name", READS)
def test_each_row_reads_from_itself(name: str) -> None:
    assert aten.as_strided.default not in targets(prove(Net(READS[name]), (2, 5, 6)))


def test_a_weight_is_read_by_strides() -> None:
    class Weighted(Net):
        def forward(self, x: Tensor) -> Tensor:
            return x.square() * self.table.as_strided((5, 6), (1, 1), 2)

    assert aten.as_strided.default not in targets(prove(Weighted(torch.clone), (2, 5, 6)))


@pytest.mark.parametrize("name", REFUSED)
def test_what_memory_decides_is_refused_in_one_line(name: str) -> None:
    read, reason = REFUSED[name]
    with pytest.raises(NetworkError, match=reason) as caught:
        trace(Net(read).double().eval(), specs([(2, 5, 6)]))
    assert "\n" not in str(caught.value) and "test_strides.py, line" in str(caught.value)
