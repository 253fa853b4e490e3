"""Pooling whose windows are not whole, or have a divisor of their own, against PyTorch, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.graph.proof import aten, prove, targets
from tests.graph.rules.examples import Example, NearMiss, Pyramid

Forward = Callable[[Tensor], Tensor]

EXAMPLE = Example(Pyramid, (4, 6, 8), fires=2)

ODD: dict[str, tuple[Forward, tuple[int, ...]]] = {
    "average": (lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True), (2, 10, 10)),
    "average of padded": (lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), (2, 10, 9)),
    "average of what is inside": (lambda x: F.avg_pool2d(x, 3, 2, 1, True, False), (2, 10, 10)),
    "average of one axis": (lambda x: F.avg_pool1d(x, 3, 2, 1, ceil_mode=True), (2, 10)),
    "average of three axes": (lambda x: F.avg_pool3d(x, 3, 2, 1, ceil_mode=True), (2, 10, 7, 6)),
    "divisor": (lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=2), (2, 10, 10)),
    "divisor of three axes": (lambda x: F.avg_pool3d(x, 3, 2, 1, divisor_override=4), (2, 7, 10, 6)),
    "divisor of windows that are not whole": (
        lambda x: F.avg_pool2d(x, (2, 3), (3, 2), (1, 1), ceil_mode=True, divisor_override=5), (2, 10, 11),
    ),
    "largest": (lambda x: F.max_pool2d(x, 2, ceil_mode=True), (2, 9, 10)),
    "largest of padded": (lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), (2, 10, 10)),
    "largest of one axis": (lambda x: F.max_pool1d(x, 3, 2, 1, ceil_mode=True), (2, 10)),
    "largest of three axes": (lambda x: F.max_pool3d(x, 3, 2, 1, ceil_mode=True), (2, 10, 7, 6)),
    "largest of dilated": (lambda x: F.max_pool2d(x, 3, 3, 1, 2, ceil_mode=True), (2, 10, 11)),
    "larger steps than windows": (lambda x: F.max_pool2d(x, 2, 3, ceil_mode=True), (2, 10, 11)),
    "without channels": (lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True), (10, 10)),
}  # fmt: skip


class Pooled(nn.Module):
    """`forward` of a map that is negative everywhere, so that a zero that is padded would be the largest."""

    def __init__(self, pool: Forward) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(-1 - x.square())


def near_miss(pool: Forward) -> NearMiss:
    return NearMiss(
        lambda: Pooled(pool), (2, 9, 10), holds=lambda result: not targets(result)[aten.constant_pad_nd.default]
    )


NEAR_MISSES = {
    "an average of whole windows": near_miss(lambda x: F.avg_pool2d(x, 3, 2, 1)),
    "an average of what is inside": near_miss(lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)),
    "the largest of whole windows": near_miss(lambda x: F.max_pool2d(x, 3, 2, 1, dilation=2)),
}


@pytest.mark.parametrize("name", ODD)
def test_windows_that_are_not_whole_are_pooled_as_by_pytorch(name: str) -> None:
    pool, shape = ODD[name]
    result = prove(Pooled(pool), shape)
    assert {report.name: report.fired for report in result.report}["decompose_pooling"] == 1
    for node in result.module.graph.nodes:
        if "pool" in str(node.target):
            assert True not in node.args[4:], "no window is left that is not whole"


def test_windows_that_are_whole_anyway_need_no_padding() -> None:
    result = prove(Pooled(lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True)), (2, 8, 10))
    assert aten.constant_pad_nd.default not in targets(result)


def test_the_largest_of_values_below_all_numbers_is_one_of_them() -> None:
    result = prove(Pooled(lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True)), (2, 8, 8))
    x = torch.full((1, 2, 8, 8), 2.0**500, dtype=torch.float64)
    assert bool((result.module(x)[0] == -(2.0**1000)).all())
