"""Rows of channels as a matrix: what takes the form, what must not, and that TensorRT-RTX then copies nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlpdeploy.engine.backend import BuildRequest, backends
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.forms import fill_ranks, flatten_rows
from mlpdeploy.engine.onnx.emit import Emitted, emit
from mlpdeploy.evidence.proof.runs import onnx_run
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.quantisation.calibrate import calibrate
from mlpdeploy.graph.quantisation.codes import CODES
from mlpdeploy.graph.quantisation.sites import sites
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from mlpdeploy.progress import Stages

TOKENS, CHANNELS = 9, 16
Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Layers for a forward of its own, with random parameters."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.own = forward
        self.norm, self.other = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
        self.up, self.down = nn.Linear(CHANNELS, 24), nn.Linear(24, CHANNELS)
        self.tokens, self.scale = nn.Linear(TOKENS, TOKENS), nn.Parameter(torch.rand(CHANNELS) + 0.5)
        self.gate = nn.Linear(12, CHANNELS)
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0.3, 0.4)

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self, x)


def mlp(net: Net, x: Tensor) -> Tensor:
    return x + net.down(F.gelu(net.up(net.norm(x))))


def mixer(net: Net, x: Tensor) -> Tensor:
    for _ in range(3):
        x = x + net.tokens(net.other(x).transpose(1, 2)).transpose(1, 2)
        x = mlp(net, x)
    return x.mean(1)


def affine(net: Net, x: Tensor) -> Tensor:
    for _ in range(3):
        x = x + net.tokens((x * net.scale + 0.5).transpose(1, 2)).transpose(1, 2) * net.scale
        x = x + net.scale * net.down(F.gelu(net.up(x * net.scale)))
    return x.mean(1)


def gated(net: Net, x: Tensor) -> Tensor:
    u, v = F.gelu(net.up(net.norm(x))).chunk(2, dim=-1)
    v = net.tokens(v.transpose(1, 2)).transpose(1, 2)
    return net.gate(u * v).mean(1)


def emitted(forward: Forward, shape: tuple[int, ...] = (TOKENS, CHANNELS), precision: str = "fp32") -> Emitted:
    rewritten = rewrite(trace(Net(forward).eval(), [TensorSpec("x", shape, torch.float32)]))
    return emit(apply(rewritten, plan(rewritten, precision)))


def prepared(forward: Forward, shape: tuple[int, ...] = (TOKENS, CHANNELS), precision: str = "fp32") -> onnx.ModelProto:
    return fill_ranks.rewrite(emitted(forward, shape, precision).model)[0]


def equal(model: onnx.ModelProto, other: onnx.ModelProto, shape: tuple[int, ...], batch: int, within: float) -> None:
    x = {"x": np.random.default_rng(batch).normal(size=(batch, *shape)).astype(np.float32)}
    first, second = (onnx_run(each, 1)(x)["output"] for each in (model, other))
    assert np.abs(first - second).max() <= within * np.abs(first).max()


@pytest.mark.parametrize(("forward", "products"), [(mixer, 6), (affine, 6)])
@pytest.mark.parametrize(("precision", "within"), [("fp32", 1e-6), ("fp16", 3e-3)])
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_it_computes_the_same(forward: Forward, products: int, precision: str, within: float, batch: int) -> None:
    given = prepared(forward, precision=precision)
    model, count = flatten_rows.rewrite(given)
    onnx.checker.check_model(model, full_check=True)
    assert count == products
    equal(given, model, (TOKENS, CHANNELS), batch, within)
    sizes = [sum(one.ByteSize() for one in each.graph.initializer) for each in (given, model)]
    assert sizes[1] < 1.2 * sizes[0]  # what nothing reads any more is gone


def grid(net: Net, x: Tensor) -> Tensor:
    return mlp(net, mlp(net, x)).mean((1, 2))


def five(net: Net, x: Tensor) -> Tensor:
    return mlp(net, x)


@pytest.mark.parametrize(("forward", "shape"), [(grid, (3, 5, CHANNELS)), (five, (2, 3, 5, CHANNELS))])
def test_rows_of_more_axes(forward: Forward, shape: tuple[int, ...]) -> None:
    given = prepared(forward, shape)
    model, count = flatten_rows.rewrite(given)
    onnx.checker.check_model(model, full_check=True)
    assert count >= 2
    for batch in (1, 4):
        equal(given, model, shape, batch, 1e-6)


def flat_operations(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node if node.output[0].endswith("/rows") and node.op_type != "Reshape"]


def test_a_norm_in_front_of_tokens_stays_in_three_axes() -> None:
    model, _ = flatten_rows.rewrite(prepared(mixer))
    inside = flat_operations(model)
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    assert len(norms) == 6 and inside.count("LayerNormalization") == 3


def alone(net: Net, x: Tensor) -> Tensor:
    return net.down(F.gelu(net.up(x))).softmax(1)  # over tokens: no sum, no transpose


def over_tokens(net: Net, x: Tensor) -> Tensor:
    return x + net.tokens(x.transpose(1, 2)).transpose(1, 2)


def flat_already(net: Net, x: Tensor) -> Tensor:
    return mlp(net, x)


def by_activations(net: Net, x: Tensor) -> Tensor:
    return x + x @ x.transpose(1, 2) @ x


def inner_result(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[return]
    hidden = net.up(net.norm(x))
    return x + net.down(F.gelu(hidden)), hidden


@pytest.mark.parametrize(
    ("forward", "shape"),
    [
        (gated, (TOKENS, CHANNELS)),
        (alone, (TOKENS, CHANNELS)),
        (over_tokens, (TOKENS, CHANNELS)),
        (flat_already, (CHANNELS,)),
        (by_activations, (TOKENS, CHANNELS)),
        (inner_result, (TOKENS, CHANNELS)),
    ],
)
def test_near_misses_stay_as_they_are(forward: Forward, shape: tuple[int, ...]) -> None:
    given = prepared(forward, shape)
    model, count = flatten_rows.rewrite(given)
    assert count == 0 and model is given


def odd(net: Net, x: Tensor) -> Tensor:
    return x + net.tokens(F.gelu(net.tokens(x)))


def test_rows_of_an_odd_length_stay() -> None:
    given = prepared(odd, (CHANNELS, TOKENS))
    assert flatten_rows.rewrite(given) == (given, 0)


def coded(forward: Forward, shape: tuple[int, ...], precision: str, plain: str = "") -> onnx.ModelProto:
    """The file in 8 bits, but for the products of the module `plain`."""
    rewritten = rewrite(trace(Net(forward).eval(), [TensorSpec("x", shape, torch.float32)]))
    rows = {"x": np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)}
    names = [name for name, site in sites(rewritten.module, CODES[precision]).found.items() if site.module == plain]
    quantisation = calibrate(rewritten, rows, "max", precision, equalising=False, kept=dict.fromkeys(names, ""))
    planned = plan(rewritten, precision, quantisation=quantisation, beside="fp32")
    return fill_ranks.rewrite(emit(apply(rewritten, planned)).model)[0]


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize(
    ("forward", "shape", "plain", "products"),
    [(grid, (3, 5, CHANNELS), "", 4), (grid, (3, 5, CHANNELS), "up", 4), (five, (TOKENS, CHANNELS), "up", 2)],
)
def test_codes(forward: Forward, shape: tuple[int, ...], plain: str, products: int, precision: str) -> None:
    """In four axes, and where a product of a part takes none, with all that codes are made and read by."""
    given = coded(forward, shape, precision, plain)
    model, count = flatten_rows.rewrite(given)
    onnx.checker.check_model(model, full_check=True)
    assert count == products
    inside = flat_operations(model)
    assert inside.count("QuantizeLinear") >= 1 and inside.count("DequantizeLinear") > inside.count("QuantizeLinear")
    weights = {name: dims for one in model.graph.initializer for name, dims in [(one.name, [*one.dims])]}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and (dims := weights.get(node.input[0])) is not None:
            axis = next(attribute.i for attribute in node.attribute if attribute.name == "axis")
            assert len(dims) == 2 and dims[axis] == weights[node.input[1]][0]
    for batch in (1, 3):
        equal(given, model, shape, batch, 1e-5)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_codes_alone_in_three_axes_stay(precision: str) -> None:
    given = coded(five, (TOKENS, CHANNELS), precision)
    assert flatten_rows.rewrite(given) == (given, 0)


def test_sizes_that_are_not_known_stay() -> None:
    given = prepared(mixer)
    for value in given.graph.value_info:
        for dim in [*value.type.tensor_type.shape.dim][1:]:
            dim.dim_param = "tokens"
    assert flatten_rows.rewrite(given)[1] == 0


@pytest.mark.slow
@pytest.mark.parametrize("forward", [mixer, affine])
def test_tensorrt_rtx_copies_less_and_launches_less(forward: Forward, tmp_path: Path) -> None:
    backend = backends()["tensorrt-rtx"]
    if (reason := backend.available()) is not None:
        pytest.skip(reason)
    made = emitted(forward, precision="fp16")
    told = []
    for disabled in ((), ("flatten_rows",)):
        request = BuildRequest("fp16", Batch(1, 8, 32), disabled=disabled)
        told.append(backend.build(made, request, tmp_path, Stages()).facts["launches"])
    flat, before = told
    assert flat["total"] < before["total"] and flat["copies"] < before["copies"]
