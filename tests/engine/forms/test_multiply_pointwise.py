"""Convolutions of codes at one place as products: what takes the form, what must not, and what is launched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from mlpdeploy.engine.backend import BuildRequest, backends
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.form import prepare
from mlpdeploy.engine.forms import multiply_pointwise
from mlpdeploy.engine.onnx.emit import Emitted, emit
from mlpdeploy.evidence.proof.runs import onnx_run
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.quantisation.calibrate import calibrate
from mlpdeploy.graph.quantisation.equalise import equalise
from mlpdeploy.graph.quantisation.unfused import unfused
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from mlpdeploy.precisions import EIGHT_BIT
from mlpdeploy.progress import Stages

HEIGHT, WIDTH = 4, 6


class Gated(nn.Module):
    """Two blocks on maps: of three convolutions of one place, two without a bias, one gates the others."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, channels, 4, 4)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))
        self.values, self.more, self.phases, self.back = (
            nn.ModuleList(nn.Conv2d(channels, channels, 1, bias=biased) for _ in range(2))
            for biased in (False, False, True, True)
        )
        self.head = nn.Linear(channels, 16)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        for norm, values, more, phases, back in zip(
            self.norms, self.values, self.more, self.phases, self.back, strict=True
        ):
            normed = norm(x)
            phase = nn.functional.relu(phases(normed))
            x = x + back(values(normed) * phase.cos() + more(normed) * phase.sin())
        return self.head(x.mean((2, 3)))


def emitted(precision: str, beside: str = "fp32") -> Emitted:
    """The file of the network, and random images of which it is calibrated."""
    shape = (3, 4 * HEIGHT, 4 * WIDTH)
    graph = rewrite(trace(Gated().eval(), [TensorSpec("image", shape, torch.float32)]))
    quantisation = calibrate(graph, images(6), "max", precision)
    graph = equalise(graph, quantisation.equalised)
    return emit(apply(graph, plan(graph, precision, quantisation=quantisation, beside=beside)))


def images(count: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(count)
    return {"image": random.standard_normal((count, 3, 4 * HEIGHT, 4 * WIDTH)).astype(np.float32)}


@pytest.mark.parametrize("precision", EIGHT_BIT)
def test_it_computes_the_same(precision: str) -> None:
    whole = emitted(precision)
    given = whole.model
    model, found = multiply_pointwise.rewrite(given)
    onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    products = {node.name for node in model.graph.node if node.op_type == "MatMul"}
    assert products <= whole.quantised_nodes, "an engine that does not take these codes is not built"
    assert found == 8 and kinds.count("Conv") == 1 and kinds.count("Split") == 2
    assert {one.name for one in model.graph.initializer} <= {name for node in model.graph.node for name in node.input}
    for batch in (1, 3, 64):
        first, second = (onnx_run(each, 1)(images(batch))["output"] for each in (given, model))
        assert np.abs(first - second).max() <= 1e-5 * np.abs(first).max()


def file(
    kernel: str = "16, 16, 1, 1",
    told: str = "",
    axis: int = 0,
    places: str = "2, 3",
    source: str = "coded",
    weight: str = "w",
    bias: str = "bias",
    behind: str = "y = Identity (made)",
    outputs: str = "float[b, n, h, v] y",
) -> onnx.ModelProto:
    """A convolution of codes of x; `spare` are codes of the file, `floats` a weight that is none."""
    numbers, sixteen = ", ".join("1" * int(np.prod([*map(int, kernel.split(","))]))), ", ".join("1" * 16)
    text = f"""
        <ir_version: 10, opset_import: ["" : 20]>
        net (float[b, 16, {places}] x, float[16] other) => ({outputs})
        <float[{kernel}] floats = {{{numbers}}}, float scale = {{1}}, int8 zero = {{0}}, float[16] bias = {{{sixteen}}},
         int8[{kernel}] codes = {{{numbers}}}, float[16] scales = {{{sixteen}}}, float[16, 1, 1] each = {{{sixteen}}},
         int8[16] zeros = {{{sixteen}}}, int8[1, 16, 2, 3] spare = {{{", ".join("1" * 96)}}}>
        {{
            q = QuantizeLinear (x, scale, zero)
            coded = DequantizeLinear (q, scale, zero)
            constant = DequantizeLinear (spare, scale, zero)
            w = DequantizeLinear <axis = {axis}> (codes, scales)
            made = Conv {told} ({source}, {weight}{", " + bias if bias else ""})
            {behind}
        }}
    """
    model = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))
    for node in model.graph.node:
        node.name = f"{node.output[0]}/{node.op_type}"
    return model


def before_codes(*lines: str, **given: Any) -> onnx.ModelProto:
    """A convolution without codes, operations, and codes of what they give."""
    made = {"source": "x", "weight": "floats", "behind": "\n".join(lines)}
    return file(**(made | given))


CODES = "c = QuantizeLinear (h, scale, zero) \n y = DequantizeLinear (c, scale, zero)"
BOTH = "float[b, n, h, v] y, float[b, n, h, v] {}"
FIRES = {
    "a bias": file(),
    "no bias": file(bias=""),
    "what it says anyway": file(told="<group = 1, pads = [0, 0, 0, 0], strides = [1, 1], kernel_shape = [1, 1]>"),
    "an activation before codes": before_codes("h = Relu (made)", CODES),
    "an activation in parts": before_codes("s = Sigmoid (made)", "h = Mul (made, s)", CODES),
    "an activation in more parts": before_codes("t = Tanh (made)", "s = Add (t, scale)", "h = Mul (made, s)", CODES),
    "codes that are read twice": before_codes(
        "h = Relu (made)", CODES, "z = DequantizeLinear (c, scale, zero)", outputs=BOTH.format("z")
    ),
    "with a number": before_codes("h = Max (made, scale)", CODES, bias=""),
}
NEAR_MISSES = {
    "an odd number of places": file(places="3, 3"),
    "places that are not known": file(places="2, v"),
    "neighbours too": file(kernel="16, 16, 3, 3", told="<pads = [1, 1, 1, 1]>"),
    "every other place": file(told="<strides = [2, 2]>"),
    "places around": file(told="<pads = [1, 1, 1, 1]>"),
    "groups": file(kernel="16, 8, 1, 1", told="<group = 2>"),
    "a weight without codes": file(weight="floats"),
    "a weight with scales of its columns": file(axis=1),
    "a map without codes": file(source="x"),
    "codes of the file": file(source="constant"),
    "a bias that is given": file(bias="other"),
    "an odd number of places before codes": before_codes("h = Relu (made)", CODES, places="3, 3"),
    "nothing between": before_codes("h = Identity (made)", CODES),
    "no codes behind": before_codes("y = Relu (made)"),
    "something else reads the activation": before_codes(
        "h = Relu (made)", CODES, "z = Exp (h)", outputs=BOTH.format("z")
    ),
    "the activation is an output": before_codes("h = Relu (made)", CODES, outputs=BOTH.format("h")),
    "the codes are an output": before_codes(
        "h = Relu (made)", CODES, outputs="float[b, n, h, v] y, int8[b, n, h, v] c"
    ),
    "something else reads the codes": before_codes(
        "h = Relu (made)", CODES, "z = Transpose (c)", outputs="float[b, n, h, v] y, int8[v, h, n, b] z"
    ),
    "codes twice": before_codes(
        "h = Relu (made)",
        CODES,
        "z = QuantizeLinear (h, scale, zero)",
        outputs="float[b, n, h, v] y, int8[b, n, h, v] z",
    ),
    "a number of each channel": before_codes("h = Mul (made, each)", CODES),
    "another map": before_codes("h = Add (made, x)", CODES),
    "scales of each channel": before_codes(
        "h = Relu (made)", "c = QuantizeLinear (h, scales, zeros)", "y = DequantizeLinear (c, scales, zeros)"
    ),
}


def drawn(model: onnx.ModelProto) -> onnx.ModelProto:
    """The file with weights and biases that are not all alike."""
    random = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.size > 1 and tensor.name != "zeros":
            small = (
                random.integers(-3, 4, values.shape) if values.dtype == np.int8 else random.random(values.shape) + 0.5
            )
            tensor.CopyFrom(numpy_helper.from_array(small.astype(values.dtype), tensor.name))
    return model


@pytest.mark.parametrize("name", FIRES)
def test_a_convolution_at_one_place(name: str) -> None:
    given = drawn(FIRES[name])
    before = given.SerializeToString(deterministic=True)
    model, found = multiply_pointwise.rewrite(given)
    assert found == 1 and given.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(model, full_check=True)
    (product,) = (node for node in model.graph.node if node.op_type == "MatMul")
    assert product.name == "made/Conv" and not any(node.op_type == "Conv" for node in model.graph.node)
    x = {"x": np.random.default_rng(1).normal(size=(3, 16, 2, 3)).astype(np.float32), "other": np.zeros(16, np.float32)}
    first, second = (ReferenceEvaluator(each).run(None, x) for each in (given, model))
    for one, other in zip(first, second, strict=True):
        assert one.shape == other.shape and np.abs(one.astype(float) - other.astype(float)).max() <= 1e-4


def test_maps_that_the_same_weight_multiplies() -> None:
    """TensorRT's parser refuses a file in which two nodes have the same name."""
    given = file()
    first = next(node for node in given.graph.node if node.op_type == "Conv")
    decoded = next(node for node in given.graph.node if node.output[0] == "coded")
    for place, source in enumerate([decoded, first]):
        second = given.graph.node.add()
        second.CopyFrom(source)
        second.name, second.output[0] = f"{source.name}_1", f"{source.output[0]}_1"
        if place:
            second.input[0] = "coded_1"
    given.graph.output.append(onnx.helper.make_tensor_value_info("made_1", onnx.TensorProto.FLOAT, None))
    given = onnx.shape_inference.infer_shapes(given)
    model, found = multiply_pointwise.rewrite(given)
    onnx.checker.check_model(model, full_check=True)
    names = [node.name for node in model.graph.node]
    assert found == 2 and len(names) == len(set(names))


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_near_miss_stays(name: str) -> None:
    given = NEAR_MISSES[name]
    assert multiply_pointwise.rewrite(given) == (given, 0)


class Mlp(nn.Module):
    """Two convolutions of one place and a GELU, twice: on maps of 4 x 6 places the first of each stays out of FP8."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.up, self.down = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 20, 1), nn.Conv2d(20, 16, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        x = x + self.down(nn.functional.gelu(self.up(x)))
        return x + self.down(nn.functional.relu(self.up(x)))


def test_what_stays_out_of_fp8_is_a_product_too() -> None:
    graph = rewrite(trace(Mlp().eval(), [TensorSpec("image", (3, 4 * HEIGHT, 4 * WIDTH), torch.float32)]))
    kept = unfused(graph.module)
    quantisation = calibrate(graph, images(6), "max", "fp8", kept=kept)
    graph = equalise(graph, quantisation.equalised)
    given = emit(apply(graph, plan(graph, "fp8", quantisation=quantisation, beside="fp32"))).model
    model, found = multiply_pointwise.rewrite(given)
    onnx.checker.check_model(model, full_check=True)
    assert len(kept) == 2 and found == 4
    first, second = (onnx_run(each, 1)(images(3))["output"] for each in (given, model))
    assert np.abs(first - second).max() <= 1e-5 * np.abs(first).max()


@pytest.mark.slow
@pytest.mark.parametrize("precision", EIGHT_BIT)
def test_tensorrt_rtx_moves_less_in_fewer_launches(precision: str, tmp_path: Path) -> None:
    rtx = backends()["tensorrt-rtx"]
    if (reason := rtx.available()) is not None:
        pytest.skip(reason)
    given, told = emitted(precision, "fp16"), []
    for disabled in ((), ("multiply_pointwise",)):
        folder = tmp_path / str(len(disabled))
        folder.mkdir()
        request = BuildRequest(precision, Batch(8, 8, 8), ("sm89",), disabled=disabled)
        told.append(rtx.build(given, request, folder, Stages()).facts["launches"])
    assert all(one["copies"] == 0 for one in told)
    assert told[0]["total"] < told[1]["total"] and told[0]["bytes_moved"] < told[1]["bytes_moved"]


@pytest.mark.parametrize(("name", "fires"), [("tensorrt-rtx", EIGHT_BIT), ("tensorrt", ())])
def test_it_is_for_codes_of_the_engine_that_needs_it(name: str, fires: tuple[str, ...]) -> None:
    given = FIRES["a bias"]
    for precision in ("fp16", *EIGHT_BIT):
        fired = {one.name: one.fired for one in prepare(given, backends()[name].forms, precision).forms}
        assert fired.get("multiply_pointwise", 0) == (precision in fires)
