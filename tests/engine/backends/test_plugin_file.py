"""The ONNX file that asks for the plugin: what becomes a plugin in it, and what is left to TensorRT."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from mlpdeploy.engine.backend import backends
from mlpdeploy.engine.backends.tensorrt import _plugin, parse
from mlpdeploy.engine.onnx.functions import BODIES, OPSET, SEGMENTS, Body
from mlpdeploy.errors import BuildError
from mlpdeploy.graph import custom_ops

RTX = backends()["tensorrt-rtx"].available()
needs_rtx = pytest.mark.skipif(RTX is not None, reason=str(RTX))


def model() -> onnx.ModelProto:
    """One projection, between a name for its input and one for its output."""
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)).numpy()
    node = helper.make_node(SEGMENTS, ["x", "w"], ["y"], "one", domain=custom_ops.DOMAIN, split=[0, 0, 4, 4])
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, 4, 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(custom_ops.DOMAIN, 1)]
    functions = [Body().function()]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)


def test_the_file_that_asks_for_the_plugin() -> None:
    before = model()
    kept = before.SerializeToString()
    for tf32 in (False, True):
        after = _plugin.with_plugin(before, tf32)
        (node,) = after.graph.node
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        assert attributes == {
            "plugin_namespace": b"mlpdeploy",
            "plugin_version": b"1",
            "split": [0, 0, 4, 4],
            "tf32": [int(tf32)],
        }
        assert (node.domain, node.op_type, list(node.input)) == (custom_ops.DOMAIN, SEGMENTS, ["x", "w"])
        assert not after.functions and _plugin.is_called(after)
    assert before.SerializeToString() == kept and not _plugin.is_called(before)


@pytest.mark.parametrize("name", BODIES)
def test_every_function_becomes_the_same_plugin(name: str) -> None:
    before, body = model(), BODIES[name]
    given = body.attributes_of((1, 2, 4, 4, 6), 3, 5)
    node = helper.make_node(body.name, ["x", "w"], ["y"], "one", domain=custom_ops.DOMAIN, **given)
    before.graph.node[0].CopyFrom(node)
    del before.functions[:]
    before.functions.append(body.function())
    after = _plugin.with_plugin(before, False)
    (made,) = after.graph.node
    attributes = {one.name: helper.get_attribute_value(one) for one in made.attribute}
    segments = 3 if body.scatters else 1
    assert not after.functions and list(made.input) == ["x", "w"] and made.op_type == SEGMENTS
    assert attributes["split"] == [0, 0, segments, 5] and "merge" not in attributes


@needs_rtx
def test_a_plugin_that_is_not_registered_is_an_error() -> None:
    """TensorRT's own parser refuses the file: nothing falls back to another engine in silence."""
    assert parse(model()).total.layers > 1
    with pytest.raises(BuildError, match="cannot parse"):
        parse(_plugin.with_plugin(model(), False))


def test_projections_of_int8_codes_are_left_to_tensorrt() -> None:
    coded = model()
    scale, zero = numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.int8(0), "z")
    coded.graph.initializer.extend([scale, zero])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
    ]
    projection = coded.graph.node.pop()
    projection.input[0] = "d"
    second = helper.make_node(SEGMENTS, ["x", "w"], ["plain"], "two", domain=custom_ops.DOMAIN, split=[0, 0, 4, 4])
    coded.graph.node.extend([*nodes, projection, second])
    after = _plugin.with_plugin(coded, False)
    asks = [any(one.name == "plugin_namespace" for one in node.attribute) for node in after.graph.node]
    assert asks == [False, False, False, True] and [one.name for one in after.functions] == [f"{SEGMENTS}_body"]
    assert [node.op_type for node in after.graph.node if node.domain] == [f"{SEGMENTS}_body", SEGMENTS]
    onnx.checker.check_model(coded)
    coded.graph.node.pop()
    assert _plugin.refusal(tensorrt(), coded) == "what has a plugin reads 8-bit codes"


def tensorrt(**members: Any) -> SimpleNamespace:
    return SimpleNamespace(__name__="tensorrt", __version__="10.13.0", **members)
