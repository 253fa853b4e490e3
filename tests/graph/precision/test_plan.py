"""The precision plan: what overflows is found, named, and kept in FP32; all else gets the dtype asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpdeploy.engine.onnx.emit import emit
from mlpdeploy.errors import InputError
from mlpdeploy.evidence.proof.runs import onnx_run
from mlpdeploy.graph.precision.plan import Plan, plan
from mlpdeploy.graph.precision.typed import Typed, apply
from mlpdeploy.graph.rewrite import Rewritten, rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace

aten = torch.ops.aten


class Block(nn.Module):
    """x + fc2(gain * gelu(fc1(norm x))^2) / gain."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        # The square and the ReLU keep the gain out of the weights: only the activations are large.
        hidden = F.gelu(self.fc1(self.norm(x)))
        large = hidden * (hidden * self.gain)
        return x + self.fc2(F.relu(large)) / self.gain


class Blocks(nn.Module):
    """Three blocks, of which the second has activations of some hundred thousand."""

    def __init__(self, gain: float = 2e5) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(1.0), Block(gain), Block(1.0)])
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def graph(network: nn.Module, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Rewritten:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.5) if parameter.is_floating_point() else None
    return rewrite(trace(network, [TensorSpec(f"x{i}", shape, dtype) for i, shape in enumerate(shapes)]))


def typed(rewritten: Rewritten, precision: str, io: str = "fp32") -> tuple[Plan, Typed]:
    planned = plan(rewritten, precision, io)
    return planned, apply(rewritten, planned)


def image(rewritten: Rewritten, batch: int = 3) -> Tensor:
    return torch.from_numpy(rewritten.inputs[0].draw(batch, np.random.default_rng(1))).to(rewritten.inputs[0].dtype)


def judged(made: Typed, *inputs: Tensor) -> np.ndarray:
    """What the emitted file means, by ONNX Runtime with every result rounded."""
    feeds = {spec.name: tensor.numpy() for spec, tensor in zip(made.inputs, inputs, strict=True)}
    (found,) = onnx_run(emit(made).model, 1)(feeds).values()
    return found


def close(found: Tensor | np.ndarray, wanted: Tensor, tolerance: float = 5e-3) -> None:
    found = torch.as_tensor(found).float()
    assert torch.isfinite(found).all()
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


def test_activations_beyond_fp16_are_found_named_and_kept_with_their_readers() -> None:
    network = Blocks()
    rewritten = graph(network, (5, 8))
    planned, made = typed(rewritten, "fp16")
    assert planned.kept and {kept.module for kept in planned.kept} == {"blocks.1", "blocks.1.fc2"}
    reasons = [kept.reason for kept in planned.kept]
    assert any(reason.startswith("reaches ") and reason.endswith("FP16 ends at 6.55e4") for reason in reasons)
    assert any(reason.startswith("reads ") for reason in reasons)
    kept = {node.name: node for node in made.module.graph.nodes if node.name in made.fp32}
    assert len(kept) == len(planned.kept) and all(node.meta["val"].dtype == torch.float32 for node in kept.values())
    large = {kept.node for kept in planned.kept if kept.reason.startswith("reaches")}
    assert large and all(
        user.name in kept for name in large for user in kept[name].users if user.target is not aten.to.dtype
    )
    x = image(rewritten)
    wanted = network(x).detach()
    close(made.module(x)[0], wanted)
    close(judged(made, x), wanted)
    # Without the plan the same network is lost.
    everything = Plan("fp16", {name: torch.float16 for name in planned.dtypes}, torch.float32, ())
    assert not torch.isfinite(apply(rewritten, everything).module(x)[0]).all()


def test_tensorrt_parses_the_layers_that_are_kept_as_float_and_all_others_as_half() -> None:
    pytest.importorskip("tensorrt_rtx")
    from mlpdeploy.engine.backends import tensorrt
    from mlpdeploy.engine.backends.tensorrt import _follows_plan

    made = typed(graph(Blocks(), (5, 8)), "fp16")[1]
    emitted = emit(made)
    parsed = tensorrt.parse_prepared(emitted.model)
    _follows_plan.check(parsed, "fp16", emitted.fp32_nodes)
    floats = {name for layer in parsed.computing if layer.dtype == "FLOAT" for name in (layer.layer, *layer.nodes)}
    halves = [layer for layer in parsed.computing if layer.dtype == "HALF"]
    assert emitted.fp32_nodes and floats & emitted.fp32_nodes
    assert all(name.startswith(("blocks.1/", "blocks.1.fc2/")) for name in emitted.fp32_nodes)
    assert len(halves) > len([layer for layer in parsed.computing if layer.dtype == "FLOAT"])
    with pytest.raises(Exception, match=r"blocks\.1"):
        _follows_plan.check(parsed, "fp16", ())


def test_a_network_within_range_keeps_nothing() -> None:
    planned, made = typed(graph(Blocks(gain=1.0), (5, 8)), "fp16")
    assert not planned.kept and not made.fp32
    assert set(planned.dtypes.values()) == {torch.float16}
    weights = {p.dtype for p in made.module.parameters()}
    assert weights == {torch.float16}


class Mean(nn.Module):
    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset, self.fc = offset, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh((x + self.offset).mean((1, 2)) - self.offset))


@pytest.mark.parametrize(("offset", "kept"), [(10.0, False), (90.0, True)])
def test_a_mean_is_judged_by_the_sum_that_it_forms(offset: float, kept: bool) -> None:
    """1024 numbers around 90 add up to 92000, although each, and their mean, are small."""
    planned = plan(graph(Mean(offset), (32, 32, 8)), "fp16")
    names = {k.node for k in planned.kept}
    assert any("mean" in name for name in names) == kept


def test_samples_decide_instead_of_normal_numbers() -> None:
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sqrt(x * x + 1)

    rewritten = graph(Square(), (4,))
    assert not plan(rewritten, "fp16").kept
    samples = {"x0": np.full((1, 4), 500.0, np.float32)}
    assert {k.reason.split()[0] for k in plan(rewritten, "fp16", samples=samples).kept} == {"reaches", "reads"}


def test_a_value_that_is_not_a_number_is_kept() -> None:
    class Bad(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nan_to_num(torch.log(-x.abs() - 1)) + x

    assert plan(graph(Bad(), (4,)), "fp16").kept


def test_weights_beyond_fp16_keep_their_readers_in_fp32() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, bias=False))
    rewritten = graph(network, (4,))
    with torch.no_grad():
        network[1].weight[0, 0] = 3e5
        network[0].weight[0] = network[0].bias[0] = 0
    planned, made = typed(rewritten, "fp16")
    assert [kept.module for kept in planned.kept] == ["1"] and planned.kept[0].reason.startswith("reads 3e+05")
    x = image(rewritten)
    close(made.module(x)[0], network(x).detach())


def test_a_shared_weight_is_stored_once_for_each_dtype() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.log1p(self.fc(torch.exp(14 * torch.cos(x))).abs()))

    rewritten = graph(Shared(), (4,))
    made = typed(rewritten, "fp16")[1]
    assert sorted(str(p.dtype) for p in made.module.parameters()) == ["torch.float16", "torch.float32"]


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32), ("tf32", torch.float32)]
)
def test_other_precisions_need_no_exceptions(precision: str, dtype: torch.dtype) -> None:
    network = Blocks()
    rewritten = graph(network, (5, 8))
    planned, made = typed(rewritten, precision)
    assert not planned.kept and set(planned.dtypes.values()) == {dtype} and made.precision == precision
    assert made.inputs[0].dtype == made.outputs[0].dtype == torch.float32
    x = image(rewritten)
    close(made.module(x)[0], network(x).detach(), 6e-2 if precision == "bf16" else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("io", ["fp16", "bf16", "fp32"])
def test_inputs_and_outputs_have_the_dtype_asked_for(io: str) -> None:
    rewritten = graph(Blocks(1.0), (5, 8))
    made = typed(rewritten, "fp16", io)[1]
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[io]
    assert made.inputs[0].dtype == made.outputs[0].dtype == dtype
    result = made.module(image(rewritten).to(dtype))[0]
    assert result.dtype == dtype and torch.isfinite(result.float()).all()
    casts = [node for node in made.module.graph.nodes if node.target is aten.to.dtype]
    assert len(casts) == (0 if io == "fp16" else 2)
    ports = emit(made).model.graph
    kinds = {port.type.tensor_type.elem_type for port in (*ports.input, *ports.output)}
    assert kinds == {{"fp16": 10, "bf16": 16, "fp32": 1}[io]}


def test_integer_inputs_stay_integers() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc = nn.Embedding(7, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.table(x).mean(1))

    network = Tokens()
    rewritten = rewrite(trace(network, [TensorSpec("x", (5,), torch.int64, 0, 7)]))
    made = typed(rewritten, "fp16")[1]
    assert made.inputs[0].dtype == torch.int64 and made.outputs[0].dtype == torch.float32
    x = torch.arange(10).reshape(2, 5) % 7
    close(made.module(x)[0], network(x).detach())
    close(judged(made, x), network(x).detach())


def test_the_rewritten_graph_and_the_network_stay_as_they_are() -> None:
    network = Blocks()
    rewritten = graph(network, (5, 8))
    before = [(node.name, node.meta["val"].dtype) for node in rewritten.module.graph.nodes if "val" in node.meta]
    typed(rewritten, "fp16")
    assert before == [
        (node.name, node.meta["val"].dtype) for node in rewritten.module.graph.nodes if "val" in node.meta
    ]
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


@pytest.mark.parametrize(("precision", "io", "named"), [("int3", "fp32", "int3"), ("fp16", "int8", "int8")])
def test_an_unknown_precision_is_named(precision: str, io: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        plan(graph(nn.Linear(4, 4), (4,)), precision, io)


def test_the_range_pass_leaves_the_number_of_threads_as_it_was() -> None:
    before = torch.get_num_threads()
    plan(graph(nn.Linear(4, 4), (4,)), "fp16")
    assert torch.get_num_threads() == before


class Norm(nn.Module):
    """The norm of an order over the last axis of a projection."""

    def __init__(self, order: float) -> None:
        super().__init__()
        self.order, self.first = order, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(self.first(x), self.order, -1, keepdim=True)


@pytest.mark.parametrize(
    ("order", "wide"), [(2, True), (3, True), (4.5, True), (400, True), (1, False), (math.inf, False), (0, False)]
)
def test_a_norm_whose_powers_overflow_for_a_large_row_stays_in_fp32(order: float, wide: bool) -> None:
    rewritten = graph(Norm(order), (8,))
    planned, found = typed(rewritten, "fp16")
    kept = [one.node for one in planned.kept]
    assert kept == (["linalg_vector_norm_default"] if wide else [])
    x = 100 * torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    (expected,) = rewritten.module(x)
    output = judged(found, x)
    assert np.isfinite(output).all() or order == 400
    assert order == 400 or np.allclose(output, expected, rtol=5e-3)


def test_a_norm_whose_powers_fit_is_computed_in_fp16() -> None:
    network = Norm(2)
    rewritten = graph(network, (8,))
    with torch.no_grad():
        rewritten.module.get_parameter("first.weight").mul_(0.01)
        rewritten.module.get_parameter("first.bias").mul_(0.01)
    assert not plan(rewritten, "fp16").kept
