"""fold_affine: what a projection takes in, in every spelling, and the scales and shifts that it must leave."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.proof import fired, prove_twice, targets
from tests.graph.rules.examples import Example, NearMiss, Net, Tokens

aten = torch.ops.aten

EXAMPLE = Example(Tokens, (6, 4), fires=1)


def linear() -> nn.Linear:
    return nn.Linear(6, 8)


NEAR_MISSES = {
    "the scale has a second reader": NearMiss(
        lambda: Net(lambda m, x: (m.fc(y := x * m.scale), y), fc=linear(), scale=(6,)), (6,)
    ),
    "the projection has a second reader": NearMiss(
        lambda: Net(lambda m, x: ((y := m.fc(x)) * m.scale, y), fc=linear(), scale=(8,)), (6,)
    ),
    "a LayerNorm with two readers": NearMiss(
        lambda: Net(lambda m, x: m.a(y := m.norm(x)) * m.b(y), a=linear(), b=linear(), norm=nn.LayerNorm(6)), (6,)
    ),
    "the scale varies along the tokens": NearMiss(
        lambda: Net(lambda m, x: m.fc(x * m.scale), fc=linear(), scale=(5, 1)), (5, 6)
    ),
    "the scale is computed": NearMiss(lambda: Net(lambda m, x, s: m.fc(x * s), fc=linear()), (6,), others=((6,),)),
    "the scale adds a dimension": NearMiss(
        lambda: Net(lambda m, x: m.fc(x.unsqueeze(1) * m.scale), fc=linear(), scale=(5, 6)), (6,)
    ),
    "a function between scale and projection": NearMiss(
        lambda: Net(lambda m, x: m.fc(F.gelu(x * m.scale)), fc=linear(), scale=(6,)), (6,)
    ),
    "the input divides the scale": NearMiss(
        lambda: Net(lambda m, x: m.fc(m.scale / (x * x + 1)), fc=linear(), scale=(6,)), (6,)
    ),
    "the weight is computed": NearMiss(
        lambda: Net(lambda m, x, w: (x * m.scale) @ w.mean(0), scale=(6,)), (6,), others=((6, 8),)
    ),
    "a convolution's scale varies along the width": NearMiss(
        lambda: Net(lambda m, x: m.conv(x * m.scale), conv=nn.Conv2d(4, 6, 3), scale=(4, 1, 6)), (4, 6, 6)
    ),
    "a BatchNorm of the batch itself": NearMiss(
        lambda: Net(lambda m, x: m.fc(F.batch_norm(x, None, None, m.g, None, training=True)), fc=linear(), g=(6,)),
        (6,),
        batches=(2, 5),  # a batch of one has no variance, and torch refuses it
    ),
    "a shift in front of padding": NearMiss(
        lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1)),
        (4, 6, 6),
        ("a shift in front of zero padding is not a bias",),
        holds=lambda result: targets(result) == {aten.conv2d.default: 1, aten.batch_norm.default: 1},
    ),
}


def sandwich(front: nn.Module, projection: nn.Module, behind: nn.Module) -> nn.Module:
    return nn.Sequential(front, projection, behind)


class Scale(nn.Module):
    """LayerScale: one factor for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Affine(nn.Module):
    """ResMLP's: a factor and a shift for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.empty(channels)), nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.beta, self.alpha, x)


class Odd(nn.Module):
    """Scales and shifts in unusual spellings."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.p = nn.ParameterList(nn.Parameter(torch.empty(channels)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = (1.5 - x) / 3 - self.p[0]
        x = torch.addcmul(self.p[1], x, self.p[2], value=0.5)
        return self.p[3] + 2 * x


LINEARS = {
    "Affine in front and LayerScale behind": sandwich(Affine(6), nn.Linear(6, 8), Scale(8)),
    "no bias": sandwich(Affine(6), nn.Linear(6, 8, bias=False), Affine(8)),
    "BatchNorm in front and behind": sandwich(nn.BatchNorm1d(6), nn.Linear(6, 8), nn.BatchNorm1d(8)),
    "BatchNorm without parameters": sandwich(nn.BatchNorm1d(6, affine=False), nn.Linear(6, 8), nn.Identity()),
    "sub, div, addcmul and scalars": sandwich(Odd(6), nn.Linear(6, 8), Odd(8)),
    "LayerNorm in front": sandwich(nn.LayerNorm(6), nn.Linear(6, 8), nn.Identity()),
}


@pytest.mark.parametrize("name", LINEARS)
def test_a_linear_takes_in_what_is_around_it(name: str) -> None:
    result = prove_twice(LINEARS[name], "fold_affine", (6,))
    assert fired(result)["fold_affine"] == 1
    kept = {aten.layer_norm.default: 1} if "LayerNorm" in name else {}
    assert targets(result) == {aten.linear.default: 1, **kept}


CONVOLUTIONS = {
    "behind a padded convolution": sandwich(nn.Identity(), nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)),
    "in front of and behind a convolution": sandwich(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)),
    "around a grouped convolution": sandwich(
        nn.BatchNorm2d(4), nn.Conv2d(4, 6, 2, stride=2, groups=2, bias=False), nn.BatchNorm2d(6)
    ),
    "around a depthwise convolution": sandwich(nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_takes_in_batch_norms(name: str) -> None:
    result = prove_twice(CONVOLUTIONS[name], "fold_affine", (4, 6, 6))
    assert fired(result)["fold_affine"] == 1
    assert targets(result) == {aten.conv2d.default: 1}


def test_a_scale_alone_goes_through_padding() -> None:
    network = Net(lambda m, x: m.conv(x * m.scale), conv=nn.Conv2d(4, 6, 3, padding=1), scale=(4, 1, 1))
    assert targets(prove_twice(network, "fold_affine", (4, 6, 6))) == {aten.conv2d.default: 1}


def test_a_token_projection_takes_scales_along_its_rows_and_columns() -> None:
    """W @ x: the scale of tokens goes into W, that of channels stays as one product, shifts become one constant."""

    def run(m: Net, x: Tensor) -> Tensor:
        x = (x * m.tokens_in + m.shift_in) * m.channels_in
        x = m.mix(x.transpose(1, 2)).transpose(1, 2)
        return x * m.channels_out * m.tokens_out + m.shift_out

    network = Net(
        run, mix=nn.Linear(5, 7), tokens_in=(5, 1), shift_in=(6,), channels_in=(6,), channels_out=(6,),
        tokens_out=(7, 1), shift_out=(7, 6),
    )  # fmt: skip
    result = prove_twice(network, "fold_affine", (5, 6))
    assert fired(result)["fold_affine"] == 1
    assert targets(result) == {aten.matmul.default: 1, aten.mul.Tensor: 1, aten.add.Tensor: 1}


def test_a_residual_block_of_resmlp_keeps_one_product_and_one_sum_for_its_token_projection() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2, self.tokens = Affine(6), Affine(6), nn.Linear(5, 5)
            self.ls1, self.ls2, self.fc1, self.fc2 = Scale(6), Scale(6), nn.Linear(6, 12), nn.Linear(12, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.ls1(self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2))
            return x + self.ls2(self.fc2(F.gelu(self.fc1(self.norm2(x)))))

    result = prove_twice(Block(), "fold_affine", (5, 6))
    assert fired(result)["fold_affine"] == 3
    adds = 1 + 2
    assert targets(result) == {
        aten.matmul.default: 1, aten.mul.Tensor: 1, aten.add.Tensor: adds, aten.linear.default: 2, aten.gelu.default: 1
    }  # fmt: skip


def test_a_scale_of_one_channel_broadcasts_into_every_row() -> None:
    network = Net(lambda m, x: m.fc(x * m.one + m.one) * m.one, fc=nn.Linear(6, 8), one=(1,))
    assert targets(prove_twice(network, "fold_affine", (6,))) == {aten.linear.default: 1}


def test_a_shared_weight_is_folded_for_each_reader_on_its_own() -> None:
    network = Net(lambda m, x: m.fc(x * m.a) * m.fc(x) * (m.fc(x) * m.a), fc=nn.Linear(6, 6), a=(6,))
    result = prove_twice(network, "fold_affine", (6,))
    assert fired(result)["fold_affine"] == 2
    assert targets(result) == {aten.linear.default: 3, aten.mul.Tensor: 2}
