"""fuse_token_mlps: which MLPs over tokens become one operation, and which must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mlpdeploy import kernels
from mlpdeploy.graph.kinds import shape_of
from mlpdeploy.graph.rewrite import Rewritten, for_kernel, rewrite
from mlpdeploy.graph.token_mlp import TOKEN_MLP
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from tests.graph.programs import Program, programs
from tests.graph.proof import aten, fired, prove, prove_twice, reasons, rewritten, targets
from tests.graph.rules.examples import Example, Layers, NearMiss, Net
from tests.graph.rules.test_activate_projections import Block

RULE = "fuse_token_mlps"
T, C = Layers.T, Layers.C
Run = Callable[[Any, Tensor], Tensor]


def up(net: Layers, x: Tensor) -> Tensor:
    """The first product, with a bias."""
    return net.weights[0] @ x + net.weights[1]


def mlp(net: Layers, x: Tensor, activation: Callable[[Tensor], Tensor] = F.gelu) -> Tensor:
    """Both products, each with a bias."""
    return net.weights[2] @ activation(up(net, x)) + net.weights[3]


def height(matrix: Tensor, x: Tensor) -> Tensor:
    """The rows of a grid mixed."""
    return torch.einsum("uh,bhwc->buwc", matrix, x)


SHAPES = ((9, T), (9, 1), (T, 9), (T, 1))


def kept(result: Rewritten) -> bool:
    return TOKEN_MLP not in targets(result)


def near_miss(run: Run, *why: str, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> NearMiss:
    return NearMiss(lambda: Layers(run, *shapes), (T, C), why, holds=kept)


EXAMPLE = Example(lambda: Block(T, C), (T, C), fires=1)

ELSEWHERE = "its hidden activations are read elsewhere as well"
NO_BIAS = "what is added to it is not a constant for each of its outputs"
NO_MATRIX = "its weight is not one constant matrix"
GELU = "its activation is {}, and the kernel computes GELU"


def read_twice(net: Layers, x: Tensor) -> Tensor:
    hidden = F.gelu(up(net, x))
    return net.weights[2] @ hidden + hidden.mean((1, 2), keepdim=True)


def read_before(net: Layers, x: Tensor) -> Tensor:
    hidden = up(net, x)
    return net.weights[2] @ F.gelu(hidden) + hidden.mean((1, 2), keepdim=True)


def read_before_its_bias(net: Layers, x: Tensor) -> Tensor:
    hidden = net.weights[0] @ x
    return net.weights[2] @ F.gelu(hidden + net.weights[1]) + hidden.mean((1, 2), keepdim=True)


NEAR_MISSES = {
    "relu": near_miss(lambda net, x: x + mlp(net, x, F.relu), GELU.format("relu")),
    "silu": near_miss(lambda net, x: x + mlp(net, x, F.silu), GELU.format("silu")),
    "gated by silu": near_miss(lambda net, x: x + mlp(net, x, lambda y: y.sin() * F.silu(y))),
    "no activation": near_miss(lambda net, x: x + mlp(net, x, lambda y: y)),
    "gelu of gelu's tangent": near_miss(lambda net, x: x + mlp(net, x, lambda y: F.gelu(y).tan())),
    "hidden activations that are read twice": near_miss(read_twice, ELSEWHERE),
    "read in front of gelu": near_miss(read_before, ELSEWHERE),
    "read in front of the bias": near_miss(read_before_its_bias, ELSEWHERE),
    "a first matrix that is computed": near_miss(
        lambda net, x: net.weights[2] @ F.gelu(x.sin() @ x.transpose(1, 2)), shapes=(*SHAPES[:2], (3, T))
    ),
    "a second matrix that is computed": near_miss(lambda net, x: x.transpose(1, 2) @ F.gelu(x), shapes=()),
    "a second matrix made of the input": near_miss(
        lambda net, x: x.transpose(1, 2) @ F.gelu(net.weights[0] @ x), shapes=((T, T),)
    ),
    "a linear in front": near_miss(lambda net, x: net.weights[0] @ F.gelu(net.channels(x)), shapes=((5, T),)),
    "a linear behind": near_miss(
        lambda net, x: F.linear(F.gelu(net.weights[0] @ x), net.weights[1]), shapes=((9, T), (7, C))
    ),
    "a constant for each channel in front of gelu": near_miss(
        lambda net, x: net.weights[1] @ F.gelu(net.weights[0] @ x + net.weights[2]), NO_BIAS,
        shapes=((9, T), (T, 9), (C,)),
    ),
    "a matrix for each of several in front": near_miss(
        lambda net, x: net.weights[1] @ F.gelu(net.weights[0] @ x[:, None]), NO_MATRIX, shapes=((3, 9, T), (T, 9))
    ),
    "a matrix for each of several behind": near_miss(
        lambda net, x: net.weights[1] @ F.gelu(net.weights[0] @ x[:, None]), NO_MATRIX, shapes=((9, T), (3, T, 9))
    ),
}  # fmt: skip


def arguments(result: Rewritten) -> tuple[Any, ...]:
    """Of the one operation, the shapes of its tensors without the batch of x and of the residual, and GELU."""
    (node,) = (node for node in result.module.graph.nodes if node.target is TOKEN_MLP)
    x, first, up_bias, gelu, second, down_bias, residual = node.args
    shapes = [None if one is None else shape_of(one) for one in (first, up_bias, second, down_bias)]
    inner = [None if one is None else shape_of(one)[1:] for one in (x, residual)]
    return inner[0], *shapes[:2], gelu, *shapes[2:], inner[1]


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("shape", [(49, 4), (196, 3), (7, 5)])
def test_the_mlp_of_a_mixer_with_its_residual(shape: tuple[int, int], approximate: str) -> None:
    result, size = prove_twice(Block(*shape, approximate), RULE, shape, enabled=[RULE]), shape[0]
    kind = "tanh" if approximate == "tanh" else "erf"
    assert arguments(result) == (shape, (5, size), (5, 1), kind, (size, 5), (size, 1), shape)
    assert targets(result)[aten.matmul.default] == 0 and targets(result)[aten.gelu.default] == 1


def test_what_is_left_of_a_mixer_is_for_the_other_rule() -> None:
    result = prove(Block(T, C), (T, C), enabled=[RULE, "activate_projections"])
    assert (fired(result)[RULE], fired(result)["activate_projections"]) == (1, 1)
    assert aten.gelu.default not in targets(result)


FUSED: dict[str, tuple[Run, tuple[tuple[int, ...], ...], tuple[bool, ...]]] = {
    "all of it": (lambda net, x: x.sin() + mlp(net, x), SHAPES, (True, True, True)),
    "the residual behind": (lambda net, x: mlp(net, x) + x.sin(), SHAPES, (True, True, True)),
    "without biases": (
        lambda net, x: x + net.weights[1] @ F.gelu(net.weights[0] @ x), ((9, T), (T, 9)), (False, False, True),
    ),
    "without a residual, to other tokens": (mlp, (*SHAPES[:2], (3, 9), (3, 1)), (True, True, False)),
    "a second bias behind the residual": (
        lambda net, x: (x + net.weights[2] @ F.gelu(up(net, x))) + net.weights[3], SHAPES, (True, False, True),
    ),
    "a residual that widens": (
        lambda net, x: x.mean(1, keepdim=True) + mlp(net, x), SHAPES, (True, True, False),
    ),
    "a result that is read before the residual": (
        lambda net, x: (y := mlp(net, x)) * (x + y), SHAPES, (True, True, False),
    ),
    "a result that is added to itself": (lambda net, x: (y := mlp(net, x)) + y, SHAPES, (True, True, False)),
    "a residual with a factor": (
        lambda net, x: torch.add(x, mlp(net, x), alpha=2), SHAPES, (True, True, False),
    ),
    "a residual that is read elsewhere": (lambda net, x: (x + mlp(net, x)) * x.sin(), SHAPES, (True, True, True)),
    "a row of numbers for each channel behind": (
        lambda net, x: net.weights[2] @ F.gelu(up(net, x)) + net.channels.bias, SHAPES, (True, False, False),
    ),
    "stacked otherwise in between": (
        lambda net, x: net.weights[1] @ F.gelu((net.weights[0] @ x).reshape(-1, 1, 9, C)).reshape(-1, 9, C),
        ((9, T), (T, 9)), (False, False, False),
    ),
    "of a grid along its height": (
        lambda net, x: height(net.weights[1], F.gelu(height(net.weights[0], x.unflatten(1, (2, 3))))),
        ((5, 2), (2, 5)), (False, False, False),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_it_is_fused(name: str) -> None:
    run, shapes, present = FUSED[name]
    result = prove(Layers(run, *shapes), (T, C), enabled=[RULE])
    found = arguments(result)
    assert fired(result)[RULE] == 1 and tuple(found[place] is not None for place in (2, 5, 6)) == present
    assert aten.gelu.default not in targets(result)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_that_rounds_by_itself_is_left_alone(dtype: torch.dtype) -> None:
    network = Block(T, C).to(dtype).eval()
    result = rewrite(trace(network, [TensorSpec("x", (T, C), dtype)]), enabled=[RULE])
    name = str(dtype).removeprefix("torch.")
    assert kept(result)
    assert reasons(result, RULE) == [f"the network itself computes it in {name}, and rounds it before GELU"]


def test_a_batch_that_is_contracted_is_left_alone() -> None:
    network = Net(
        lambda net, x: (net.down @ F.gelu(net.up @ x.transpose(0, 1))).transpose(0, 1), up=(5, T), down=(T, 5)
    )
    result = prove(network, (T,), enabled=[RULE], disabled=["propagate_layout", "normalise_contractions"])
    assert kept(result) and reasons(result, RULE) == ["its sizes depend on the batch"]


@pytest.mark.parametrize(("tokens", "why"), [(1024, None), (1025, "1025 tokens need 321 KiB of shared memory")])
def test_tokens_that_fit_no_block_are_left_alone_and_the_bytes_are_named(tokens: int, why: str | None) -> None:
    """Of 2048, the next power of two, 16 channels, and two steps of 16 hidden tokens in both matrices; and barriers."""
    assert kernels.load("token_mlp.problem").least_shared(1025, 1025) == 2 * (16 * 2048 + 2 * 16 * 4096) + 1024
    result = rewritten(Block(tokens, 2), (tokens, 2), enabled=[RULE])
    assert reasons(result, RULE) == ([] if why is None else [f"{why}, of which a block has 227"])
    assert kept(result) == (why is not None)


def test_it_is_off_unless_asked_for_and_for_engines_with_the_kernel() -> None:
    result = rewritten(Block(T, C), (T, C))
    assert RULE not in fired(result) and kept(result) and RULE in for_kernel()


SIZES = st.tuples(st.integers(2, 9), st.integers(2, 7), st.integers(2, 7))
"""Tokens, hidden ones, channels: of one channel, the tokens of an image are a row, and its products linears."""


@pytest.mark.slow
@settings(max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(SIZES, st.sampled_from(["none", "tanh"]), st.tuples(*[st.booleans()] * 4))
def test_random_mlps_keep_their_function(sizes: tuple[int, int, int], kind: str, parts: tuple[bool, ...]) -> None:
    """With and without each bias and the residual, on either side, twice in a row."""
    (tokens, hidden, channels), (first, second, residual, behind) = sizes, parts

    def run(net: Any, x: Tensor) -> Tensor:
        for _ in range(2):
            inner = F.gelu(net.up @ x + net.shift if first else net.up @ x, approximate=kind)
            y = net.down @ inner + net.lift if second else net.down @ inner
            x = y if not residual else y + x if behind else x + y
        return x

    shapes = {"up": (hidden, tokens), "shift": (hidden, 1), "down": (tokens, hidden), "lift": (tokens, 1)}
    result = prove(Net(run, **shapes), (tokens, channels), batches=(1, 3), enabled=[RULE])
    assert fired(result)[RULE] == 2


@settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(programs(), st.booleans())
@pytest.mark.large
def test_random_networks_keep_their_function(program: Program, both: bool) -> None:
    enabled = [RULE, "activate_projections"] if both else [RULE]
    prove(program.network(), program.shape, batches=(1, 2, 5), enabled=enabled)
