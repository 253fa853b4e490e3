"""What is no rearrangement, or looks like none: views that repeat or leave out elements, memory formats, casts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.graph.proof import aten, fired, moves, prove, targets
from tests.graph.rules.examples import Layers, Net

T, C = Layers.T, Layers.C
Forward = Callable[[Layers, Tensor], Tensor]

VIEWS: dict[str, Forward] = {
    "expand": lambda net, x: net.tokens(x.mean(1, keepdim=True).expand(-1, T, -1).mT).mT,
    "expand of a new axis": lambda net, x: net.tokens(x[:, None].expand(-1, 3, -1, -1).mT).mT.sum(1),
    "as_strided": lambda net, x: net.tokens(x.contiguous().as_strided((x.shape[0], C, T), (C * T, 1, C))).mT,
    "overlapping windows": lambda net, x: net.tokens(
        x.unfold(1, 3, 1).flatten(2).mT.mean(1, keepdim=True).expand(-1, T, -1).flatten(1).unflatten(1, (4, 6))
    ),
    "narrow": lambda net, x: net.channels(x.narrow(1, 1, 3)).mT,
    "every other token": lambda net, x: net.channels(x[:, ::2].mT.mT),
    "flip": lambda net, x: net.tokens(x.flip(1).mT).mT,
    "roll": lambda net, x: net.tokens(x.roll(2, 1).mT).mT,
    "diagonal": lambda net, x: net.channels(x.unflatten(1, (2, 3)).diagonal(dim1=1, dim2=2).mT),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_that_repeat_or_leave_out_elements(name: str) -> None:
    prove(Layers(VIEWS[name]), (T, C))


@pytest.mark.parametrize("disabled", [(), ("remove_identities",)])
def test_channels_last_memory_is_no_layout_of_the_value(disabled: tuple[str, ...]) -> None:
    """`contiguous(memory_format=channels_last)` changes strides, not what the network sees."""

    def forward(net: Layers, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return net.channels(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    prove(Layers(forward), (C, 2, 3), disabled=disabled)


def test_casts_stay_and_do_not_stand_in_the_way() -> None:
    def forward(net: Layers, x: Tensor) -> Tensor:
        rows = net.norm(x).mT.to(torch.float16).to(torch.float32).tanh().double()
        return net.norm(net.tokens(rows).mT)

    result = prove(Layers(forward), (T, C))
    assert (fired(result)["project_tokens"], moves(result)) == (1, 0)
    assert targets(result)[aten.to.dtype] == 3


def test_bits_read_as_another_dtype() -> None:
    def forward(net: Layers, x: Tensor) -> Tensor:
        return net.norm(net.tokens(x.mT).mT.contiguous().view(torch.int64).view(torch.float64))

    assert fired(prove(Layers(forward), (T, C)))["project_tokens"] == 1


def test_negative_dimensions_and_detours() -> None:
    def forward(net: Layers, x: Tensor) -> Tensor:
        y = net.tokens(x.unsqueeze(-3).transpose(-2, -1).movedim(-3, 0))
        return net.norm(y.movedim(-4, -3).transpose(-1, -2).squeeze(-3))

    result = prove(Layers(forward), (T, C))
    assert (fired(result)["project_tokens"], moves(result)) == (1, 0)


def test_weights_that_a_convolution_finds_for_channels_are_picked_where_they_lie() -> None:
    """What pooling leaves has its channels last and first at once."""

    def weigh(m: Net, x: Tensor) -> Tensor:
        weights = m.conv(x.mean((2, 3), keepdim=True)).reshape(x.shape[0], 3, 2).permute(2, 0, 1).softmax(0)
        return (x * weights[0][..., None, None]) + weights[1][..., None, None]

    assert moves(prove(Net(weigh, conv=nn.Conv2d(3, 6, 1)), (3, 5, 4))) == 0
