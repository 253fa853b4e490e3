"""The rules on numbers: each exact at random parameters in float64, with exact counts, near-misses and idempotence."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpdeploy.graph.custom_ops import SEGMENT_GROUPED_PROJECTION
from mlpdeploy.graph.rewrite import Rewritten, rewrite
from mlpdeploy.graph.tracing.trace import Traced, trace
from mlpdeploy.zoo.vip import VisionPermutator, WeightedPermuteMLP
from tests.graph.proof import assert_same, fired, randomised, reasons, specs, targets

aten = torch.ops.aten


class Net(nn.Module):
    """Some modules and parameters, and a function of them and the inputs."""

    def __init__(self, run: Callable[..., Tensor | tuple[Tensor, ...]], **parts: nn.Module | tuple[int, ...]) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part if isinstance(part, nn.Module) else nn.Parameter(torch.empty(part)))

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        return self.run(self, x) if other is None else self.run(self, x, other)


def prove(network: nn.Module, rule: str, *shapes: Sequence[int], enabled: Collection[str] = ()) -> Rewritten:
    """`network` rewritten: the same in float64, and `rule` finds nothing more to do in the result."""
    result = rewrite(trace(randomised(network), specs(shapes)), enabled=enabled)
    assert_same(network, result, shapes)
    again = rewrite(Traced(result.module, result.inputs, result.outputs), enabled=enabled)
    assert_same(network, again, shapes)
    assert fired(again)[rule] == 0
    return result


# fold_affine


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
    result = prove(LINEARS[name], "fold_affine", (6,))
    assert fired(result)["fold_affine"] == 1
    kept = {aten.layer_norm.default: 1} if "LayerNorm" in name else {}
    assert targets(result) == {aten.linear.default: 1, **kept}


CONVOLUTIONS = {
    "behind a padded convolution": (sandwich(nn.Identity(), nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)), 1),
    "in front of and behind a convolution": (sandwich(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), 1),
    "around a grouped convolution": (
        sandwich(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 2, stride=2, groups=2, bias=False), nn.BatchNorm2d(6)),
        1,
    ),
    "around a depthwise convolution": (
        sandwich(nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8)),
        1,
    ),
    "a shift in front of padding": (sandwich(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1), nn.Identity()), 0),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_takes_in_batch_norms(name: str) -> None:
    network, count = CONVOLUTIONS[name]
    result = prove(network, "fold_affine", (4, 6, 6))
    assert fired(result)["fold_affine"] == count
    left = sum(number for target, number in targets(result).items() if target is not aten.conv2d.default)
    assert left == 1 - count, targets(result)
    if not count:
        assert reasons(result, "fold_affine") == ["a shift in front of zero padding is not a bias"]


def test_a_scale_alone_goes_through_padding() -> None:
    network = Net(lambda m, x: m.conv(x * m.scale), conv=nn.Conv2d(4, 6, 3, padding=1), scale=(4, 1, 1))
    assert targets(prove(network, "fold_affine", (4, 6, 6))) == {aten.conv2d.default: 1}


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
    result = prove(network, "fold_affine", (5, 6))
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

    result = prove(Block(), "fold_affine", (5, 6))
    assert fired(result)["fold_affine"] == 3
    adds = 1 + 2
    assert targets(result) == {
        aten.matmul.default: 1, aten.mul.Tensor: 1, aten.add.Tensor: adds, aten.linear.default: 2, aten.gelu.default: 1
    }  # fmt: skip


NEAR_MISSES: dict[str, tuple[nn.Module, list[tuple[int, ...]]]] = {
    "the scale has a second reader": (
        Net(lambda m, x: (m.fc(y := x * m.scale), y), fc=nn.Linear(6, 8), scale=(6,)), [(6,)],
    ),
    "the projection has a second reader": (
        Net(lambda m, x: ((y := m.fc(x)) * m.scale, y), fc=nn.Linear(6, 8), scale=(8,)), [(6,)],
    ),
    "a LayerNorm with two readers": (
        Net(lambda m, x: m.a(y := m.norm(x)) * m.b(y), a=nn.Linear(6, 8), b=nn.Linear(6, 8), norm=nn.LayerNorm(6)),
        [(6,)],
    ),
    "the scale varies along the tokens": (
        Net(lambda m, x: m.fc(x * m.scale), fc=nn.Linear(6, 8), scale=(5, 1)), [(5, 6)],
    ),
    "the scale is computed": (
        Net(lambda m, x, s: m.fc(x * s), fc=nn.Linear(6, 8)), [(6,), (6,)],
    ),
    "the scale adds a dimension": (
        Net(lambda m, x: m.fc(x.unsqueeze(1) * m.scale), fc=nn.Linear(6, 8), scale=(5, 6)), [(6,)],
    ),
    "a function between scale and projection": (
        Net(lambda m, x: m.fc(F.gelu(x * m.scale)) , fc=nn.Linear(6, 8), scale=(6,)), [(6,)],
    ),
    "the input divides the scale": (
        Net(lambda m, x: m.fc(m.scale / (x * x + 1)), fc=nn.Linear(6, 8), scale=(6,)), [(6,)],
    ),
    "the weight is computed": (
        Net(lambda m, x, w: (x * m.scale) @ w.mean(0), scale=(6,)), [(6,), (6, 8)],
    ),
    "a convolution's scale varies along the width": (
        Net(lambda m, x: m.conv(x * m.scale), conv=nn.Conv2d(4, 6, 3), scale=(4, 1, 6)), [(4, 6, 6)],
    ),
    "a BatchNorm of the batch itself": (
        Net(lambda m, x: m.fc(F.batch_norm(x, None, None, m.g, None, training=True)), fc=nn.Linear(6, 8), g=(6,)),
        [(6,)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_an_affine_that_must_stay_stays(name: str) -> None:
    network, shapes = NEAR_MISSES[name]
    result = rewrite(trace(randomised(network), specs(shapes)))
    # A batch of one has no variance, and torch refuses it.
    batches = (2, 5) if "BatchNorm" in name else (1, 2, 5)
    assert_same(network, result, shapes, batches)
    assert fired(result)["fold_affine"] == 0


def test_a_scale_of_one_channel_broadcasts_into_every_row() -> None:
    network = Net(lambda m, x: m.fc(x * m.one + m.one) * m.one, fc=nn.Linear(6, 8), one=(1,))
    assert targets(prove(network, "fold_affine", (6,))) == {aten.linear.default: 1}


def test_a_shared_weight_is_folded_for_each_reader_on_its_own() -> None:
    network = Net(lambda m, x: m.fc(x * m.a) * m.fc(x) * (m.fc(x) * m.a), fc=nn.Linear(6, 6), a=(6,))
    result = prove(network, "fold_affine", (6,))
    assert fired(result)["fold_affine"] == 2
    assert targets(result) == {aten.linear.default: 3, aten.mul.Tensor: 2}


# split_projection, split_activation

SPLITTING = ("split_projection", "split_activation")


def glu(m: Net, x: Tensor) -> Tensor:
    u, v = m.fc(x).chunk(2, -1)
    return u * torch.sigmoid(v)


def gated(m: Net, x: Tensor) -> Tensor:
    u, v = F.gelu(m.fc(x)).chunk(2, -1)
    return u * v


def uneven(m: Net, x: Tensor) -> Tensor:
    u, v, w = (m.fc(x) * m.scale).split([1, 4, 3], -1)
    return torch.cat([u * v, w], -1)


def on_tokens(m: Net, x: Tensor) -> Tensor:
    u, v = F.silu(m.fc(x.transpose(1, 2)).transpose(1, 2)).chunk(2, 1)
    return u * v


def one_part(m: Net, x: Tensor) -> Tensor:
    return m.fc(x).split(3, -1)[1]


SPLITS: dict[str, tuple[str, nn.Module, int]] = {
    "chunks of channels": ("split_projection", Net(glu, fc=nn.Linear(6, 8)), 2),
    "uneven parts of a scaled result": ("split_projection", Net(uneven, fc=nn.Linear(6, 8), scale=(8,)), 3),
    "one part of three": ("split_projection", Net(one_part, fc=nn.Linear(6, 8)), 1),
    "activated": ("split_activation", Net(gated, fc=nn.Linear(6, 8)), 2),
    "activated, no bias": ("split_activation", Net(gated, fc=nn.Linear(6, 8, bias=False)), 2),
    "activated chunks of tokens": ("split_activation", Net(on_tokens, fc=nn.Linear(5, 8)), 2),
}


@pytest.mark.parametrize("name", SPLITS)
def test_a_projection_is_split_into_its_parts(name: str) -> None:
    rule, network, parts = SPLITS[name]
    result = prove(network, rule, (5, 6))
    assert {one: fired(result)[one] for one in SPLITTING} == {one: int(one == rule) for one in SPLITTING}
    found = targets(result)
    assert found[aten.linear.default] + found[aten.matmul.default] == parts
    assert not {aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default} & set(found)


UNSPLIT: dict[str, tuple[nn.Module, list[str]]] = {
    "the whole is used as well, activated": (
        Net(lambda m, x: (torch.mul(*(y := F.gelu(m.fc(x))).chunk(2, -1)), y), fc=nn.Linear(6, 8)),
        ["the whole result is used as well"],
    ),
    "the whole is used as well": (
        Net(lambda m, x: (torch.mul(*(y := m.fc(x)).chunk(2, -1)), y), fc=nn.Linear(6, 8)),
        ["the whole result is used as well"],
    ),
    "split along another dimension": (
        Net(lambda m, x: torch.mul(*m.fc(x).chunk(2, 1)), fc=nn.Linear(6, 8)), [],
    ),
    "a softmax before the split": (
        Net(lambda m, x: torch.mul(*m.fc(x).softmax(-1).chunk(2, -1)), fc=nn.Linear(6, 8)), [],
    ),
    "two activations meet before the split": (
        Net(lambda m, x: torch.mul(*(m.fc(x) + x).chunk(2, -1)), fc=nn.Linear(6, 6)), [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSPLIT)
def test_a_projection_that_must_stay_whole_stays(name: str) -> None:
    network, why = UNSPLIT[name]
    result = prove(network, "split_projection", (4, 6))
    assert not any(fired(result)[rule] for rule in SPLITTING)
    assert [reason for rule in SPLITTING for reason in reasons(result, rule)] == why


# merge_reshapes


def test_reshapes_around_a_softmax_become_one() -> None:
    network = Net(lambda m, x: m.fc(x).reshape(-1, 4, 3).softmax(-1).reshape(-1, 1, 4, 3), fc=nn.Linear(6, 12))
    result = prove(network, "merge_reshapes", (6,))
    assert targets(result)[aten.reshape.default] == 1


def reshapes(result: Rewritten) -> int:
    return targets(result)[aten.reshape.default]


def test_a_softmax_over_an_axis_that_the_later_reshape_changes_stays() -> None:
    network = Net(lambda m, x: m.fc(x).reshape(-1, 4, 3).softmax(-1).reshape(-1, 12), fc=nn.Linear(6, 12))
    result = prove(network, "merge_reshapes", (6,))
    assert reshapes(result) == 2 and fired(result)["merge_reshapes"] == 0


def test_a_value_between_reshapes_that_is_used_keeps_both() -> None:
    def run(m: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.fc(x).reshape(-1, 4, 3).softmax(-1)
        return y, y.reshape(-1, 2, 2, 3)

    result = prove(Net(run, fc=nn.Linear(6, 12)), "merge_reshapes", (6,))
    assert fired(result)["merge_reshapes"] == 0


# hoist_reweighting


@pytest.mark.parametrize(("dim", "segments"), [(12, 3), (8, 2), (16, 4)])
def test_the_mean_for_the_reweighting_is_taken_before_the_projections(dim: int, segments: int) -> None:
    shape = (segments, segments, dim)
    result = prove(WeightedPermuteMLP(dim, segments), "hoist_reweighting", shape, enabled=["hoist_reweighting"])
    assert fired(result)["hoist_reweighting"] == 1
    assert targets(result)[SEGMENT_GROUPED_PROJECTION] == 4
    # No mean of anything is left that is as large as the sum of the branches.
    means = [node for node in result.module.graph.nodes if node.target is aten.mean.dim]
    assert means and all(not str(node.args[0].target).startswith("aten.add") for node in means)


@pytest.mark.slow
def test_every_block_of_vip_is_hoisted_and_none_by_default() -> None:
    network = VisionPermutator((2, 1), (8, 12), (4, 2), (True, False), patch_size=2, image_size=8, num_classes=5)
    by_default = prove(network, "fold_affine", (3, 8, 8))
    assert fired(by_default)["hoist_reweighting"] == 0
    result = prove(network, "fold_affine", (3, 8, 8), enabled=["hoist_reweighting"])
    assert fired(result)["hoist_reweighting"] == 3


class Pooled(nn.Module):
    """Permute-MLP's mixing along the height and, behind `after`, what reads the sum of the branches."""

    def __init__(self, after: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.along_h, self.along_c, self.after = nn.Linear(12, 12, bias=False), nn.Linear(12, 12), after

    def forward(self, x: Tensor) -> Tensor:
        h = x.unflatten(-1, (3, 4)).permute(0, 3, 2, 1, 4).flatten(3)
        h = self.along_h(h).unflatten(-1, (3, 4)).permute(0, 3, 2, 1, 4).flatten(3)
        return self.after(h, self.along_c(x))


MEANS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int, list[str]]] = {
    "over the grid": (lambda h, c: h * (h + c).mean((1, 2))[:, None, None] + c, 1, []),
    "over the width, which is not projected": (lambda h, c: h * (h + c).mean(2)[:, :, None] + c, 1, []),
    "over the channels too": (
        lambda h, c: h * (h + c).mean((1, 2, 3))[:, None, None, None] + c,
        0,
        ["the mean takes a part of what the projection produces"],
    ),
    "of a term that is no projection": (
        lambda h, c: h * (h + F.gelu(c)).mean((1, 2))[:, None, None] + c,
        0,
        ["a term of the sum is no projection"],
    ),
    "of one projection": (lambda h, c: h * h.mean((1, 2))[:, None, None] + c, 0, []),
    "of a sum that is kept as well": (lambda h, c: (y := h + c).mean((1, 2), keepdim=True) + y, 0, []),
}


@pytest.mark.parametrize("name", MEANS)
def test_a_mean_is_hoisted_where_it_is_exact(name: str) -> None:
    after, count, why = MEANS[name]
    result = prove(Pooled(after), "hoist_reweighting", (3, 3, 12), enabled=["hoist_reweighting"])
    assert fired(result)["hoist_reweighting"] == count and reasons(result, "hoist_reweighting") == why
