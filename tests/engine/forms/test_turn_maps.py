"""Maps that begin a residual stream of rows, turned first: what takes the form, what must not, and what is launched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from mlpdeploy.engine.backend import BuildRequest, backends
from mlpdeploy.engine.backends.tensorrt import TensorRT
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.form import prepare
from mlpdeploy.engine.forms import turn_maps
from mlpdeploy.engine.onnx.emit import Emitted, emit
from mlpdeploy.evidence.proof.runs import onnx_run
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from mlpdeploy.progress import Stages


class Gated(nn.Module):
    """A gMLP of two blocks on maps of 4 x 6 places: half of the hidden channels gate the others over tokens."""

    def __init__(self, channels: int = 32, hidden: int = 64, tokens: int = 24, biased: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, channels, 4, 4)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.gates = nn.ModuleList(nn.LayerNorm(hidden // 2) for _ in range(2))
        self.fc1 = nn.ModuleList(nn.Linear(channels, hidden) for _ in range(2))
        self.fc2 = nn.ModuleList(nn.Linear(hidden // 2, channels, bias=biased) for _ in range(2))
        self.mix = nn.ModuleList(nn.Linear(tokens, tokens) for _ in range(2))
        self.head = nn.Linear(channels, 8)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).mT
        for norm, gate, fc1, fc2, mix in zip(self.norms, self.gates, self.fc1, self.fc2, self.mix, strict=True):
            u, v = nn.functional.gelu(fc1(norm(x))).chunk(2, -1)
            x = x + fc2(u * mix(gate(v).mT).mT)
        return self.head(x.mean(1))


def emitted(network: nn.Module, precision: str = "fp32") -> Emitted:
    rewritten = rewrite(trace(network.eval(), [TensorSpec("image", (3, 16, 24), torch.float32)]))
    return emit(apply(rewritten, plan(rewritten, precision)))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("precision", "within"), [("fp32", 1e-6), ("fp16", 3e-3)])
def test_it_computes_the_same(biased: bool, precision: str, within: float) -> None:
    given = emitted(Gated(biased=biased), precision).model
    model, found = turn_maps.rewrite(given)
    onnx.checker.check_model(model, full_check=True)
    assert found == 1
    turned = [list(node.attribute[0].ints) for node in model.graph.node if node.op_type == "Transpose"]
    assert turned.count([0, 2, 3, 1]) == 1 and [0, 2, 1] not in turned
    for batch in (1, 3, 64):
        x = {"image": np.random.default_rng(batch).normal(size=(batch, 3, 16, 24)).astype(np.float32)}
        first, second = (onnx_run(each, 1)(x)["output"] for each in (given, model))
        assert np.abs(first - second).max() <= within * np.abs(first).max()


def file(
    perm: str = "0, 2, 1",
    sizes: str = "-1, 8, 6",
    product: str = "MatMul (normed, w)",
    more: str = "",
    last: str = "Add (rows, made)",
    outputs: str = "",
) -> onnx.ModelProto:
    """rows = transpose(reshape(map)), whose sum with a product of normed rows is the result."""
    made = f"""
        <ir_version: 10, opset_import: ["" : 20]>
        net (float[b, 8, 2, 3] map, float[b, 6, 8] other) => (float[b, n, k] y{outputs})
        <int64[3] sizes = {{{sizes}}}, float[8, 8] w = {{{", ".join("1" * 64)}}},
         float[8] bias = {{{", ".join("1" * 8)}}}, float[6, 6] left = {{{", ".join("1" * 36)}}}>
        {{
            flat = Reshape (map, sizes)
            rows = Transpose <perm = [{perm}]> (flat)
            normed = Relu (rows)
            {more}
            made = {product}
            y = {last}
        }}
    """
    model = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(made))
    for node in model.graph.node:
        node.name = f"{node.output[0]}/{node.op_type}"
    return model


FIRES = {
    "a product": file(),
    "the other way round": file(last="Add (made, rows)"),
    "a biased product": file(more="product = MatMul (normed, w)", product="Add (product, bias)"),
    "a bias in front": file(more="product = MatMul (normed, w)", product="Add (bias, product)"),
}
NEAR_MISSES = {
    "the batch moves": file(perm="2, 1, 0"),
    "channels and places are mixed": file(sizes="-1, 6, 8", product="MatMul (normed, left)"),
    "a product from the left": file(product="MatMul (left, normed)"),
    "a product of two activations": file(
        more="keys = Transpose <perm = [0, 2, 1]> (other) \n scores = MatMul (normed, keys)",
        product="MatMul (scores, normed)",
    ),
    "no product": file(product="Relu (normed)"),
    "a sum of other rows": file(last="Add (other, made)"),
    "something else reads the flat map": file(outputs=", float[b, 8, 6] z", more="z = Relu (flat)"),
    "the flat map is an output": file(outputs=", float[b, 8, 6] flat"),
    "an activation behind the product": file(more="product = MatMul (normed, w)", product="Relu (product)"),
}


@pytest.mark.parametrize("name", FIRES)
def test_by_the_sum_that_reads_it(name: str) -> None:
    model, found = turn_maps.rewrite(FIRES[name])
    onnx.checker.check_model(model, full_check=True)
    assert found == 1


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_near_miss_stays(name: str) -> None:
    given = NEAR_MISSES[name]
    assert turn_maps.rewrite(given) == (given, 0)


@pytest.mark.slow
def test_tensorrt_rtx_copies_nothing(tmp_path: Path) -> None:
    rtx = backends()["tensorrt-rtx"]
    if (reason := rtx.available()) is not None:
        pytest.skip(reason)
    given, told = emitted(Gated(), "fp16"), []
    for disabled in ((), ("turn_maps",)):
        folder = tmp_path / str(len(disabled))
        folder.mkdir()
        built = rtx.build(given, BuildRequest("fp16", Batch(1, 8, 32), disabled=disabled), folder, Stages())
        told.append(built.facts["launches"])
    assert [one["copies"] for one in told] == [0, 1] and told[0]["total"] < told[1]["total"]
    fired = {one.name: one.fired for one in prepare(given.model, TensorRT.forms, "fp16").forms}
    assert fired["turn_maps"] == 1
