"""Places that are cut off behind a transposed convolution: what takes the form, and what must not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from mlpdeploy.engine.backend import BuildRequest, backends
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.forms import crop_deconvolutions
from mlpdeploy.engine.onnx.emit import emit
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from mlpdeploy.progress import Stages
from mlpdeploy.zoo.hire_mlp import HireMLP


def file(
    told: str = "<kernel_shape = [3, 1], strides = [3, 1]>",
    sums: str = "total = Add (made, height)",
    cut: str = "y = Slice (total, zero, four, two, one)",
    outputs: str = "float[b, 2, h, w] y",
) -> onnx.ModelProto:
    """A transposed convolution of (b, 3, 2, 5) to (b, 2, 6, 5), a sum, and its first four rows."""
    text = f"""
        <ir_version: 10, opset_import: ["" : 20]>
        net (float[b, 3, 2, 5] x, int64[1] given, float[b, 2, 6, 5] map) => ({outputs})
        <float[3, 2, 3, 1] kernel = {{{", ".join("1" * 18)}}}, float[1, 2, 6, 1] height = {{{", ".join("1" * 12)}}},
         float[6, 1] rows = {{1, 2, 3, 4, 5, 6}}, float[5] width = {{1, 2, 3, 4, 5}},
         float[2, 1, 1] channels = {{1, 2}}, int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}},
         int64[1] four = {{4}}, int64[1] last = {{-1}}, int64[1] far = {{9223372036854775807}},
         int64[2] starts = {{1, 2}}, int64[2] ends = {{5, -1}}, int64[2] axes = {{-2, 3}}>
        {{
            made = ConvTranspose {told} (x, kernel)
            {sums}
            {cut}
        }}
    """
    model = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))
    for node in model.graph.node:
        node.name = f"{node.output[0]}/{node.op_type}"
    return model


FIRES = {
    "the end": file(),
    "no sum": file(sums="", cut="y = Slice (made, zero, four, two, one)"),
    "the constant first": file(sums="total = Add (height, made)"),
    "a constant of two axes": file(sums="total = Add (made, rows)"),
    "a constant of the other axis": file(sums="total = Add (made, width)"),
    "a constant of channels": file(sums="total = Add (made, channels)"),
    "the beginning": file(cut="y = Slice (total, two, far, two, one)"),
    "from behind": file(cut="y = Slice (total, one, last, two)"),
    "two axes": file(cut="y = Slice (total, starts, ends, axes)"),
    "two axes of a constant": file(sums="total = Add (made, width)", cut="y = Slice (total, starts, ends, axes)"),
    "with pads": file(
        told="<kernel_shape = [3, 1], strides = [2, 1], pads = [0, 1, 1, 0]>",
        sums="",
        cut="y = Slice (made, one, last, two)",
    ),
    "nothing": file(cut="y = Slice (total, zero, far, two, one)"),
}
NEAR_MISSES = {
    "every other row": file(cut="y = Slice (total, zero, four, two, two)"),
    "channels": file(cut="y = Slice (total, zero, one, one, one)"),
    "samples": file(cut="y = Slice (total, zero, one, zero, one)"),
    "no axes told, so samples": file(cut="y = Slice (total, zero, four)"),
    "an end that is given": file(cut="y = Slice (total, zero, given, two, one)"),
    "another map": file(sums="total = Add (made, map)"),
    "a product": file(sums="total = Mul (made, height)"),
    "something else reads the sum": file(cut="y = Slice (total, zero, four, two, one) \n z = Relu (total)",
                                         outputs="float[b, 2, h, w] y, float[b, 2, 6, 5] z"),
    "the sum is an output": file(outputs="float[b, 2, h, w] y, float[b, 2, 6, 5] total"),
    "something else reads the convolution": file(sums="total = Add (made, height) \n z = Relu (made)",
                                                 outputs="float[b, 2, h, w] y, float[b, 2, 6, 5] z"),
    "padded by itself": file(told='<kernel_shape = [3, 1], strides = [3, 1], auto_pad = "SAME_UPPER">'),
    "rows added": file(told="<kernel_shape = [3, 1], strides = [3, 1], output_padding = [1, 0]>",
                       sums="total = Add (made, width)"),
}  # fmt: skip


@pytest.mark.parametrize("name", FIRES)
def test_what_is_cut_off_is_not_computed(name: str) -> None:
    given, random = FIRES[name], np.random.default_rng(0)
    for tensor in given.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            drawn = random.normal(size=tuple(tensor.dims)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(drawn, tensor.name))
    before = given.SerializeToString(deterministic=True)
    model, found = crop_deconvolutions.rewrite(given)
    assert found == 1 and given.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(model, full_check=True)
    assert not any(node.op_type == "Slice" for node in model.graph.node)
    x = {"x": random.normal(size=(3, 3, 2, 5)).astype(np.float32), "given": np.array([4])}
    x["map"] = random.normal(size=(3, 2, 6, 5)).astype(np.float32)
    (first,), (second,) = (ReferenceEvaluator(each).run(None, x) for each in (given, model))
    assert first.shape == second.shape and np.abs(first - second).max() <= 1e-6


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_near_miss_stays(name: str) -> None:
    given = NEAR_MISSES[name]
    assert crop_deconvolutions.rewrite(given) == (given, 0)


@pytest.mark.slow
def test_tensorrt_rtx_copies_less(tmp_path: Path) -> None:
    rtx = backends()["tensorrt-rtx"]
    if (reason := rtx.available()) is not None:
        pytest.skip(reason)
    torch.manual_seed(0)
    graph = rewrite(trace(HireMLP(32, 3, 0).eval(), [TensorSpec("map", (32, 8, 8), torch.float32)]), off=rtx.off)
    given, told = emit(apply(graph, plan(graph, "fp16"))), []
    for disabled in ((), ("crop_deconvolutions",)):
        folder = tmp_path / str(len(disabled))
        folder.mkdir()
        built = rtx.build(given, BuildRequest("fp16", Batch(1, 8, 32), disabled=disabled), folder, Stages())
        told.append(built.facts["launches"])
    assert told[0]["copies"] == told[1]["copies"] - 2 and told[0]["total"] == told[1]["total"] - 2
