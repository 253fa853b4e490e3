"""BF16 ports as float32 ones: the same numbers, by whoever feeds them."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mlpdeploy.engine.backend import BuildRequest, backends
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.forms.widen_ports import rewrite
from mlpdeploy.engine.onnx.emit import emit
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.rewrite import rewrite as rewritten
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from mlpdeploy.progress import Stages
from tests.test_api import Net


def model(kind: int) -> onnx.ModelProto:
    """y = x + x, between ports of a kind; a value has the name that one might give to a narrowed x."""
    nodes = [
        helper.make_node("Identity", ["x"], ["x/bf16"], "a"), helper.make_node("Add", ["x/bf16", "x"], ["y"], "b"),
    ]  # fmt: skip
    ports = [helper.make_tensor_value_info(name, kind, [1, 2]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_both_ends_become_float32_and_no_name_is_used_twice() -> None:
    given = model(TensorProto.BFLOAT16)
    before = given.SerializeToString()
    made, count = rewrite(given)
    assert count == 2 and given.SerializeToString() == before
    onnx.checker.check_model(made, full_check=True)
    assert [one.type.tensor_type.elem_type for one in (*made.graph.input, *made.graph.output)] == [
        TensorProto.FLOAT
    ] * 2
    assert [node.op_type for node in made.graph.node] == ["Cast", "Identity", "Add", "Cast"]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64])
def test_other_ports_stay(kind: int) -> None:
    given = model(kind)
    assert rewrite(given) == (given, 0)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_onnx_runtime_takes_and_gives_bf16(precision: str, tmp_path: Path) -> None:
    import torch

    network = Net().eval()
    graph = rewritten(trace(network, [TensorSpec("input", (3, 16, 16), torch.float32)]))
    made = emit(apply(graph, plan(graph, precision, io="bf16")))
    built = backends()["onnxruntime"].build(made, BuildRequest(precision, Batch(1, 2, 4)), tmp_path, Stages())
    x = torch.randn(2, 3, 16, 16).bfloat16()
    with backends()["onnxruntime"].load(built.engine, built.facts) as run:
        (found,) = run({"input": x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)}).values()
    with torch.no_grad():
        expected = network(x.float()).numpy()
    assert found.dtype == ml_dtypes.bfloat16
    assert np.abs(found.astype(np.float32) - expected).max() <= 2e-2 * np.abs(expected).max()
