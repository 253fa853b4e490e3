"""The judge of low precision: float32 arithmetic, rounded after every operation."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from mlpdeploy.engine.forms import round_results
from mlpdeploy.errors import BuildError
from mlpdeploy.evidence.proof.runs import onnx_run
from tests.engine.small_networks import emitted, graph_model, images, projections, reference

LOW = {"fp16": (TensorProto.FLOAT16, np.float16), "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16)}


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    return round_results.rewrite(model)[0]


def chain(precision: str, nodes: list[onnx.NodeProto], **weights: np.ndarray) -> onnx.ModelProto:
    """Low-precision nodes from `a` to `b` between float32 ends `x` and `y`."""
    kind, dtype = LOW[precision]
    first, last = (helper.make_node("Cast", [a], [b], to=to) for a, b, to in (("x", "a", kind), ("b", "y", 1)))
    ports = {"x": (TensorProto.FLOAT, ["n"])}, {"y": (TensorProto.FLOAT, ["n"])}
    return graph_model([first, *nodes, last], *ports, {k: v.astype(dtype) for k, v in weights.items()})


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_operation_rounds_to_nearest_even(precision: str) -> None:
    dtype = LOW[precision][1]
    nodes = [helper.make_node("Mul", ["a", "w"], ["t"]), helper.make_node("Add", ["t", "v"], ["b"])]
    w, v = np.array([1.7], dtype), np.array([0.3], dtype)
    x = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    found = run(rounded(chain(precision, nodes, w=w, v=v)), x=x)
    a = x.astype(dtype).astype(np.float32)
    product = (a * w.astype(np.float32)).astype(dtype).astype(np.float32)
    wanted = (product + v.astype(np.float32)).astype(dtype).astype(np.float32)
    assert (found == wanted).all()
    once = (a * w.astype(np.float32) + v.astype(np.float32)).astype(dtype).astype(np.float32)
    assert (found != once).any()  # a judge that rounds only at the end would be another one


def test_an_fp16_overflow_shows_that_onnxruntime_alone_hides() -> None:
    nodes = [helper.make_node("Mul", ["a", "w"], ["t"]), helper.make_node("Mul", ["t", "v"], ["b"])]
    model = chain("fp16", nodes, w=np.array([300.0]), v=np.array([0.001]))
    x = np.array([300.0, 1.0], np.float32)
    assert np.isinf(run(rounded(model), x=x)).tolist() == [True, False]
    assert np.isfinite(run(model, x=x)).all()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_judge_matches_pytorch_of_the_same_dtype(precision: str) -> None:
    given = images(8)
    found = run(rounded(emitted(precision).model), image=given.numpy())
    wanted = reference(precision, given)
    unit = float(ml_dtypes.finfo(LOW[precision][1]).eps) * np.abs(wanted).max()
    assert np.abs(found - wanted).max() <= 2 * unit  # two units in the last place of the largest logit
    assert np.abs(reference("fp32", given) - wanted).max() > unit / 4  # the precisions do differ


def test_low_precision_ends_become_float32_that_is_rounded() -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    port = (TensorProto.BFLOAT16, ["n"])
    model = rounded(graph_model(nodes, {"x": port}, {"y": port}))
    assert [p.type.tensor_type.elem_type for p in (*model.graph.input, *model.graph.output)] == [TensorProto.FLOAT] * 2
    x = np.array([1.0, 1.001, 3.14159], np.float32)
    assert (run(model, x=x) == x.astype(ml_dtypes.bfloat16).astype(np.float32)).all()


def test_local_functions_are_judged_inside() -> None:
    model = rounded(projections())
    assert not model.functions
    x = np.random.default_rng(1).standard_normal((3, 4, 6)).astype(np.float32)
    found = run(model, x=x)
    assert found.shape == (3, 6, 4) and (found == found.astype(np.float16).astype(np.float32)).all()


def test_a_float32_model_comes_back_as_it_is_and_no_model_is_changed() -> None:
    model = emitted("fp32").model
    assert rounded(model) is model
    low = emitted("bf16").model
    before = low.SerializeToString(deterministic=True)
    rounded(low)
    assert low.SerializeToString(deterministic=True) == before


def test_values_that_hold_the_judges_own_names_do_not_clash() -> None:
    nodes = [helper.make_node("Mul", ["a", "a"], ["b/exact"]), helper.make_node("Neg", ["b/exact"], ["b"])]
    found = run(rounded(chain("fp16", nodes)), x=np.array([3.0], np.float32))
    assert found.tolist() == [-9.0]


def test_control_flow_is_refused_by_name() -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["r"])], "g", [], [helper.make_tensor_value_info("r", 10, ["n"])]
    )
    nodes = [
        helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", TensorProto.BOOL, [], [True])),
        helper.make_node("If", ["c"], ["b"], name="choice", then_branch=branch, else_branch=branch),
    ]
    with pytest.raises(BuildError, match="choice"):
        rounded(chain("fp16", nodes))


def test_the_largest_int8_codes_multiply_exactly() -> None:
    """On a CPU without VNNI ONNX Runtime adds products of codes in 16 bits: 64 of 127 by 127 gave 8160."""
    decoded = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], ["b"]),
    ]
    ports = {"x": (TensorProto.FLOAT, ["n", 64])}, {"y": (TensorProto.FLOAT, ["n", 8])}
    weights = {"scale": np.float32(1), "zero": np.int8(0), "weight": np.full((64, 8), 127, np.int8)}
    model = graph_model([*decoded, helper.make_node("MatMul", ["a", "b"], ["y"])], *ports, weights)
    found = onnx_run(model, 1)({"x": np.full((4, 64), 127, np.float32)})["y"]
    assert (found == 64 * 127 * 127).all()
