"""Rules for maps that are rolled, shifted and regrouped (Hire-MLP, AS-MLP, CycleMLP): exact, and no more."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpdeploy.graph.rewrite import Rewritten
from tests.graph.proof import fired, moves, prove, reasons, targets

aten = torch.ops.aten
CUTS = {aten.slice.Tensor, aten.narrow.default, aten.roll.default, aten.cat.default, aten.pad.default}


class Apply(nn.Module):
    """A function of an image and some layers."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers)


def _cuts(result: Rewritten) -> int:
    return sum(count for target, count in targets(result).items() if target in CUTS)


# convolve_regions


def _fold(x: Tensor, p: int, q: int) -> Tensor:
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // p, p, w // q, q).permute(0, 1, 3, 5, 2, 4)
    return x.reshape(b, c * p * q, h // p, w // q)


def _unfold(x: Tensor, p: int, q: int) -> Tensor:
    b, _, h, w = x.shape
    return x.reshape(b, -1, p, q, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, -1, h * p, w * q)


@pytest.mark.parametrize(("p", "q"), [(2, 1), (1, 3), (2, 3), (4, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_regions_in_the_channels_are_strided_convolutions(p: int, q: int, bias: bool) -> None:
    def mix(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
        return _unfold(second(F.relu(first(_fold(x, p, q)))), p, q) + x

    first, second = nn.Conv2d(3 * p * q, 5, 1, bias=bias), nn.Conv2d(5, 3 * p * q, 1, bias=bias)
    result = prove(Apply(mix, first, second), (3, 4, 6))
    assert fired(result)["convolve_regions"] == 2
    assert moves(result) == 0
    assert targets(result)[aten.conv_transpose2d.input] == 1


def test_regions_may_be_slower_than_the_channels() -> None:
    def merge(x: Tensor, reduction: nn.Module) -> Tensor:
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 5, 3, 1, 2, 4)
        return reduction(x.reshape(b, 4 * c, h // 2, w // 2))

    result = prove(Apply(merge, nn.Conv2d(12, 5, 1)), (3, 4, 6))
    assert fired(result)["convolve_regions"] == 1
    assert moves(result) == 0


@pytest.mark.parametrize("conv", [nn.Conv2d(12, 5, 3, padding=1), nn.Conv2d(12, 5, 1, stride=2)], ids=str)
def test_a_convolution_of_neighbours_or_a_strided_one_keeps_its_regions(conv: nn.Module) -> None:
    result = prove(Apply(lambda x, conv: conv(_fold(x, 2, 2)), conv), (3, 4, 8))
    assert fired(result)["convolve_regions"] == 0


def test_a_region_that_is_the_whole_map_is_no_convolution() -> None:
    assert (
        fired(prove(Apply(lambda x, conv: conv(_fold(x, 4, 6)), nn.Conv2d(72, 5, 1)), (3, 4, 6)))["convolve_regions"]
        == 0
    )


def test_regions_that_something_else_reads_stay() -> None:
    def mix(x: Tensor, conv: nn.Module) -> Tensor:
        y = conv(x)
        return _unfold(y, 2, 2).mean((2, 3)) + y.amax((2, 3))[:, :3]

    assert fired(prove(Apply(mix, nn.Conv2d(3, 12, 1)), (3, 4, 6)))["convolve_regions"] == 0


# gather_shifts


def _wrapped(x: Tensor, dim: int) -> Tensor:
    x = torch.roll(x, 2, dim)
    return torch.cat([x, x.narrow(dim, 0, 3)], dim)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_rolls_and_wraps_are_one_gather(dim: int) -> None:
    result = prove(Apply(lambda x: torch.roll(_wrapped(x, dim).narrow(dim, 1, 4), -1, dim)), (5, 6, 7))
    assert fired(result)["gather_shifts"] == 1
    assert _cuts(result) == 0
    assert targets(result)[aten.index_select.default] == 1


def test_a_roll_there_and_back_is_nothing() -> None:
    result = prove(Apply(lambda x: F.relu(torch.roll(torch.roll(x, 2, 2), -2, 2))), (3, 5, 4))
    assert list(targets(result)) == [aten.relu.default]


def test_a_constant_in_front_is_added_behind() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.empty(1, 3, 5, 1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.roll(x * x + self.shift, 2, 2)

    result = prove(Shifted(), (3, 5, 4))
    calls = [node.target for node in result.module.graph.nodes if node.op == "call_function"]
    assert calls.index(aten.index_select.default) < calls.index(aten.add.Tensor)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[:, :, 1:4] * 2,  # a slice alone
        lambda x: torch.cat([x, x * 2], 2),  # two tensors
        lambda x: torch.roll(x, 3),  # all elements in a row
        lambda x: torch.cat([x, x], 0)[: x.shape[0]],  # the batch
    ],
)
def test_what_is_no_shift_of_one_tensor_along_one_dimension_stays(function: Callable[..., Tensor]) -> None:
    assert fired(prove(Apply(function), (3, 5, 4)))["gather_shifts"] == 0


def test_what_else_reads_a_shift_still_gets_it() -> None:
    def both(x: Tensor) -> Tensor:
        rolled = torch.roll(x * x, 1, 2)
        return rolled * torch.cat([rolled[:, :, 3:], rolled[:, :, :3]], 2)

    result = prove(Apply(both), (3, 5, 4))
    assert fired(result)["gather_shifts"] == 2
    assert _cuts(result) == 0


# convolve_shifts


def _shifted(x: Tensor, groups: int, dim: int) -> Tensor:
    reach, size = groups // 2, x.shape[dim]
    parts = F.pad(x, (reach,) * 4).chunk(groups, 1)
    moved = [part.narrow(dim, 2 * reach - g, size) for g, part in enumerate(parts)]
    return torch.cat([part.narrow(5 - dim, reach, x.shape[5 - dim]) for part in moved], 1)


@pytest.mark.parametrize("dim", [2, 3])
def test_channels_shifted_in_groups_are_one_depthwise_convolution(dim: int) -> None:
    result = prove(Apply(lambda x: _shifted(x, 3, dim)), (8, 4, 5))
    assert fired(result)["convolve_shifts"] == 1
    assert list(targets(result)) == [aten.conv2d.default]


def _cycled(x: Tensor) -> Tensor:
    padded = F.pad(x, (1, 1, 0, 0))
    return torch.cat([padded[:, r::3, :, r : r + x.shape[3]] for r in range(3)], 1)


def test_shifted_channels_in_another_order_need_a_convolution_behind() -> None:
    result = prove(Apply(lambda x, conv: conv(_cycled(x)), nn.Conv2d(7, 4, 1)), (7, 4, 5))
    assert fired(result)["convolve_shifts"] == 1
    assert _cuts(result) == 0
    result = prove(Apply(lambda x: F.relu(_cycled(x))), (7, 4, 5))
    assert fired(result)["convolve_shifts"] == 0
    assert reasons(result, "convolve_shifts") == ["its channels are in another order, and no convolution reads them"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.cat([F.pad(x, (1, 1, 0, 0))[..., 2:], F.pad(x * 2, (1, 1, 0, 0))[..., 2:]], 1),
        lambda x: torch.cat([F.pad(x, (1, 1, 0, 0))[:, :3, :, 2:], F.pad(x, (1, 1, 0, 0))[:, :3, :, 2:]], 1),
        lambda x: torch.cat([part[..., :6] for part in F.pad(x, (1, 1, 0, 0)).chunk(2, 1)], 1),
    ],
)
def test_parts_that_do_not_make_up_one_map_stay(function: Callable[..., Tensor]) -> None:
    result = prove(Apply(function), (6, 4, 5))
    assert fired(result)["convolve_shifts"] == 0
    assert len(reasons(result, "convolve_shifts")) == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.cat([part[..., 2:] for part in F.pad(x, (1, 1, 0, 0), value=1.0).chunk(2, 1)], 1),
        lambda x: torch.cat([part[..., 2:] for part in F.pad(x, (1, 1, 0, 0), mode="replicate").chunk(2, 1)], 1),
        lambda x: torch.cat([part[..., ::2] for part in F.pad(x, (1, 1, 0, 0)).chunk(2, 1)], 1),
        lambda x: torch.cat(x.chunk(2, 1), 1),
    ],
)
def test_other_paddings_and_strides_are_no_shift(function: Callable[..., Tensor]) -> None:
    result = prove(Apply(function), (6, 4, 5))
    assert fired(result)["convolve_shifts"] == 0
    assert not reasons(result, "convolve_shifts")


# The layout of what pooling leaves.


def test_weights_that_a_convolution_finds_for_channels_are_picked_where_they_lie() -> None:
    def weigh(x: Tensor, conv: nn.Module) -> Tensor:
        weights = conv(x.mean((2, 3), keepdim=True)).reshape(x.shape[0], 3, 2).permute(2, 0, 1).softmax(0)
        return (x * weights[0][..., None, None]) + weights[1][..., None, None]

    assert moves(prove(Apply(weigh, nn.Conv2d(3, 6, 1)), (3, 5, 4))) == 0
