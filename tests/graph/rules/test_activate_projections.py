"""activate_projections: which GELU becomes the epilogue of the product in front of it, and which must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

from mlpdeploy.graph.custom_ops import WITH_EPILOGUE
from mlpdeploy.graph.editor import weight
from mlpdeploy.graph.kinds import shape_of
from mlpdeploy.graph.rewrite import Rewritten, for_kernel, rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from tests.graph.programs import Program, programs
from tests.graph.proof import aten, fired, prove, prove_twice, reasons, rewritten, targets
from tests.graph.rules.examples import Example, Layers, NearMiss, Net

RULE = "activate_projections"
T, C = Layers.T, Layers.C
Run = Callable[[Any, Tensor], Tensor]


def across(net: Layers, x: Tensor) -> Tensor:
    """The tokens mixed, which becomes a product from the left."""
    return net.tokens(x.transpose(1, 2)).transpose(1, 2)


class Block(nn.Module):
    """Mixer's block: an MLP over tokens and one over channels."""

    def __init__(self, tokens: int, channels: int, approximate: str = "none") -> None:
        super().__init__()
        self.norm, self.gelu = nn.LayerNorm(channels), nn.GELU(approximate)
        self.tokens = nn.Sequential(nn.Linear(tokens, 5), self.gelu, nn.Linear(5, tokens))
        self.channels = nn.Sequential(nn.Linear(channels, 9), self.gelu, nn.Linear(9, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm(x))


def kept(result: Rewritten) -> bool:
    return WITH_EPILOGUE not in targets(result)


def near_miss(run: Run, *why: str, shapes: tuple[tuple[int, ...], ...] = ()) -> NearMiss:
    return NearMiss(lambda: Layers(run, *shapes), (T, C), why, holds=kept)


EXAMPLE = Example(lambda: Block(T, C), (T, C), fires=2)

ELSEWHERE = "what is before GELU is read elsewhere as well"
NO_BIAS = "what is added to it is not a constant for each of its outputs"
BEHIND = "what reads its GELU is computed with it"
NEAR_MISSES = {
    "what is before GELU is added to it": near_miss(lambda net, x: F.gelu(y := net.channels(x)) + y, ELSEWHERE),
    "two kinds of GELU of one product": near_miss(
        lambda net, x: F.gelu(y := net.channels(x)) * F.gelu(y, approximate="tanh"), ELSEWHERE, ELSEWHERE
    ),
    "a product of tokens that is read before its bias": near_miss(
        lambda net, x: F.gelu((y := net.weights[0] @ x) + net.weights[1]) + y, ELSEWHERE, shapes=((T, T), (T, 1))
    ),
    "read in another shape as well": near_miss(
        lambda net, x: F.gelu((y := net.channels(x)).flatten(1)) + y.sin().flatten(1), ELSEWHERE
    ),
    "what is behind GELU is pointwise": near_miss(
        lambda net, x: (y := F.gelu(net.channels(x))) * y.sin(), BEHIND
    ),
    "a norm and a gate": near_miss(
        lambda net, x: (y := F.gelu(net.channels(x)).chunk(2, -1))[0] * F.layer_norm(y[1], (C // 2,)), BEHIND, BEHIND
    ),
    "a mean of tokens": near_miss(lambda net, x: net.channels(F.gelu(net.channels(x)).mean(1)), BEHIND),
    "a convolution of more than a place": near_miss(
        lambda net, x: F.gelu(F.conv1d(x, net.weights[0], padding=1)), shapes=((T, T, 3),)
    ),
    "a convolution of every second place": near_miss(
        lambda net, x: F.gelu(F.conv1d(x, net.weights[0], stride=2)), shapes=((T, T, 1),)
    ),
    "a convolution of groups": near_miss(
        lambda net, x: F.gelu(F.conv1d(x, net.weights[0], groups=2)), shapes=((T, T // 2, 1),)
    ),
    "a convolution with room around": near_miss(
        lambda net, x: F.gelu(F.conv1d(x, net.weights[0], padding=1)), shapes=((T, T, 1),)
    ),
    "a transposed convolution": near_miss(
        lambda net, x: F.gelu(F.conv_transpose1d(x, net.weights[0])), shapes=((T, T, 1),)
    ),
    "a convolution whose kernel is computed": near_miss(
        lambda net, x: F.gelu(F.conv1d(x, x.mean(0)[:, :1, None] + net.weights[0])),
        "its weight is not one constant matrix",
        shapes=((T, T, 1),),
    ),
    "a map that is read before GELU as well": near_miss(
        lambda net, x: F.gelu(y := F.conv1d(x, net.weights[0])) + y.sin(), ELSEWHERE, shapes=((T, T, 1),)
    ),
    "relu": near_miss(lambda net, x: net.channels(x).relu(), "its activation is relu, and the kernel computes GELU"),
    "silu of tokens": near_miss(
        lambda net, x: F.silu(across(net, x)), "its activation is silu, and the kernel computes GELU"
    ),
    "an activation of an activation": near_miss(lambda net, x: F.gelu(net.channels(x).sin())),
    "a residual before GELU": near_miss(
        lambda net, x: F.gelu(F.linear(x, net.weights[0]) + x), NO_BIAS, shapes=((C, C),)
    ),
    "a constant for each token and channel": near_miss(
        lambda net, x: F.gelu(net.weights[0] @ x + net.weights[1]), NO_BIAS, shapes=((T, T), (T, C))
    ),
    "a constant for each channel behind a product of tokens": near_miss(
        lambda net, x: F.gelu(net.weights[0] @ x + net.weights[1]), NO_BIAS, shapes=((T, T), (C,))
    ),
    "a bias that widens the product": near_miss(
        lambda net, x: F.gelu(F.linear(x, net.weights[0]) + net.weights[1]), NO_BIAS, shapes=((1, C), (C,))
    ),
    "a weight that is computed": near_miss(
        lambda net, x: F.gelu(x @ net.channels(x).transpose(1, 2)),
    ),
    "a matrix for each of several": near_miss(
        lambda net, x: F.gelu(net.weights[0] @ x[:, None]), "its weight is not one constant matrix", shapes=((3, T, T),)
    ),
    "added with a factor": near_miss(
        lambda net, x: F.gelu(torch.add(F.linear(x, net.weights[0]), net.weights[1].sin() + x.mean(), alpha=2)),
        shapes=((C, C), (C,)),
    ),
}  # fmt: skip


def epilogues(result: Rewritten) -> list[tuple[Any, ...]]:
    """Of each, the shapes of x without the batch, of its weight and bias, the segments, and GELU."""
    nodes = [node for node in result.module.graph.nodes if node.target is WITH_EPILOGUE]
    assert all(node.args[5] is node.args[6] is None for node in nodes)
    found = []
    for node in nodes:
        x, matrix, segments, bias, gelu = node.args[:5]
        (_, *sizes), constant = shape_of(x), weight(result.module, bias)
        shape = None if constant is None else tuple(constant.shape)
        found.append((tuple(sizes), shape_of(matrix), shape, segments, gelu))
    return found


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize(("shape", "size"), [((49, 4), 49), ((196, 3), 196), ((1, 4), 1), ((5, 1), 5)])
def test_both_mlps_of_a_mixer(shape: tuple[int, int], size: int, approximate: str) -> None:
    result = prove_twice(Block(*shape, approximate), RULE, shape, enabled=[RULE])
    kind, channels = "tanh" if approximate == "tanh" else "erf", shape[1]
    found = epilogues(result)
    assert ((1, 1, channels), (9, channels), (1, 1, 9), 1, kind) in found
    if min(shape) > 1:  # else the tokens lie flat anyway
        assert ((1, 1, size, channels), (5, size), (1, 1, 5, 1), 1, kind) in found
    assert len(found) == 2 and aten.gelu.default not in targets(result)


FUSED: dict[str, tuple[Run, tuple[tuple[int, ...], ...]]] = {
    "a linear without a bias": (lambda net, x: F.gelu(F.linear(x, net.weights[0])), ((7, C),)),
    "a product from the left without a bias": (lambda net, x: F.gelu(net.weights[0] @ x), ((7, T),)),
    "a bias in front": (lambda net, x: F.gelu(net.weights[1] + net.weights[0] @ x), ((7, T), (7, 1))),
    "of images": (lambda net, x: F.gelu(net.channels(x.unflatten(1, (2, 3)))), ()),
    "in another shape": (lambda net, x: F.gelu(net.channels(x).flatten(1)), ()),
    "of a transposed value": (lambda net, x: F.gelu(F.linear(x.transpose(1, 2).sin(), net.weights[0])), ((7, T),)),
    "a convolution of one place": (lambda net, x: F.gelu(F.conv1d(x, *net.weights)), ((5, T, 1), (5,))),
    "a convolution of one place, without a bias": (
        lambda net, x: F.gelu(F.conv2d(x.unflatten(2, (2, 2)), net.weights[0], padding="same")), ((5, T, 1, 1),),
    ),
    "a convolution of one place, in another shape": (
        lambda net, x: F.gelu(F.conv1d(x, *net.weights).flatten(1)), ((5, T, 1), (5,))
    ),
    "a convolution of one place in three dimensions": (
        lambda net, x: F.gelu(F.conv3d(x.unflatten(2, (2, 1, 2)), *net.weights), approximate="tanh"),
        ((1, T, 1, 1, 1), (1,)),
    ),
    "of one row for an image": (lambda net, x: F.gelu(net.channels(x.mean(1))), ()),
    "along the height of a grid": (
        lambda net, x: F.gelu(torch.einsum("uh,bhwc->buwc", net.weights[0], x.unflatten(1, (2, 3)))), ((5, 2),),
    ),
    "along the width of a grid": (
        lambda net, x: F.gelu(torch.einsum("uw,bhwc->bhuc", net.weights[0], x.unflatten(1, (2, 3)))), ((5, 3),),
    ),
}  # fmt: skip


READ: dict[str, tuple[Run, tuple[tuple[int, ...], ...]]] = {
    "read by a product, and by steps that are no product": (
        lambda net, x: (y := F.gelu(net.channels(x))) * y.sin() + y @ y.mT @ y, ()
    ),
    "of which a product reads a part": (
        lambda net, x: F.linear((y := F.gelu(net.channels(x)))[:, 1:3], net.weights[0]) * y[:, :2], ((C, C),)
    ),
    "turned before a convolution": (
        lambda net, x: F.conv1d(F.gelu(net.channels(x)).transpose(1, 2).contiguous(), net.weights[0], padding=1),
        ((C, C, 3),),
    ),
}  # fmt: skip
"""GELU that products read, whatever else does: it lies in memory for them."""


@pytest.mark.parametrize("name", FUSED | READ)
def test_it_is_fused(name: str) -> None:
    run, shapes = (FUSED | READ)[name]
    result = prove(Layers(run, *shapes), (T, C), enabled=[RULE])
    assert fired(result)[RULE] == 1 and len(epilogues(result)) == 1
    assert aten.gelu.default not in targets(result)
    assert name in READ or aten.linear.default not in targets(result)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_that_rounds_by_itself_is_left_alone(dtype: torch.dtype) -> None:
    network = Block(T, C).to(dtype).eval()
    result = rewrite(trace(network, [TensorSpec("x", (T, C), dtype)]), enabled=[RULE])
    name = str(dtype).removeprefix("torch.")
    assert kept(result)
    assert reasons(result, RULE) == 2 * [f"the network itself computes it in {name}, and rounds it before GELU"]


def test_a_batch_that_is_contracted_is_left_alone() -> None:
    network = Net(lambda net, x: F.gelu(net.matrix @ x.transpose(0, 1)).transpose(0, 1), matrix=(5, T))
    result = prove(network, (T,), enabled=[RULE], disabled=["propagate_layout", "normalise_contractions"])
    assert kept(result) and reasons(result, RULE) == ["its sizes depend on the batch"]


def test_it_is_off_unless_asked_for_and_for_engines_with_the_kernel() -> None:
    result = rewritten(Block(T, C), (T, C))
    assert RULE not in fired(result) and kept(result) and targets(result)[aten.gelu.default] == 2
    assert RULE in for_kernel()


@settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(programs())
@pytest.mark.slow
def test_random_networks_keep_their_function(program: Program) -> None:
    prove(program.network(), program.shape, batches=(1, 2, 5), enabled=[RULE])
