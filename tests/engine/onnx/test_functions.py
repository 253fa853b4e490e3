"""The ONNX functions of segment-grouped projections: each body computes what the operation means."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from mlpdeploy.engine.backend import backends
from mlpdeploy.engine.backends.tensorrt import parse
from mlpdeploy.engine.forms import fill_ranks
from mlpdeploy.engine.onnx.functions import BODIES, OPSET, SEGMENTS, Body, functions
from mlpdeploy.graph import custom_ops

RTX = backends()["tensorrt-rtx"].available()
B, P, Q, S, K, T, BEHIND = 3, 4, 6, 5, 2, 7, 3


def operands(body: Body) -> dict[str, Any]:
    """Arguments of the operation for a body: P and K are 1 where it neither gathers nor scatters."""
    p, k = (P if body.gathers else 1), (K if body.scatters else 1)
    o = [BEHIND] if body.trailing else []
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    channels = Q * T * (BEHIND if body.trailing else 1)
    return {
        "x": drawn(B, p, Q, S, *o),
        "weight": drawn(k * T, p * S) / (p * S) ** 0.5,
        "segments": k,
        "bias": drawn(k, 1, T, *[1] * len(o)) if body.bias else None,
        "gelu": body.gelu,
        "scale": drawn(B, 1, channels) if body.scale else None,
        "accumulate": drawn(B, k, channels) if body.accumulate else None,
    }


def model(body: Body, given: dict[str, Any]) -> onnx.ModelProto:
    """One call of the body, whose weight and bias are constants."""
    wanted = custom_ops.by_permuting(**given)
    weight = given["weight"] if body.trailing else given["weight"].T.contiguous()
    constants = {"w": weight, **({"bias": given["bias"]} if body.bias else {})}
    inputs = {"x": given["x"], **{name: given[name] for name in ("scale", "accumulate") if given[name] is not None}}
    shape = [-1, *wanted.shape[1:]]
    attributes = body.attributes_of(given["x"].shape, given["segments"], T, shape)
    node = helper.make_node(body.name, ["x", "w", *body.operands], ["y"], "one", domain=custom_ops.DOMAIN, **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, ["batch", *v.shape[1:]]) for k, v in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *wanted.shape[1:]])],
        [numpy_helper.from_array(value.numpy(), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(custom_ops.DOMAIN, 1)]
    made = helper.make_model(graph, opset_imports=opsets, functions=functions({body.name}), ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made


@pytest.mark.parametrize("name", BODIES)
def test_each_agrees_with_the_operation_in_onnx_runtime(name: str) -> None:
    body, given = BODIES[name], operands(BODIES[name])
    wanted = custom_ops.by_permuting(**given)
    for made in (model(body, given), fill_ranks.rewrite(model(body, given))[0]):
        session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        feed = {port.name: given[port.name].numpy() for port in session.get_inputs()}
        (got,) = session.run(None, feed)
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted.numpy(), rtol=0, atol=2e-5 * abs(wanted.numpy()).max())


@pytest.mark.parametrize("name", BODIES)
def test_k_and_t_are_read_back_from_a_call(name: str) -> None:
    body = BODIES[name]
    segments = K if body.scatters else 1
    attributes = body.attributes_of((1, P, Q, S, BEHIND), segments, T, [-1, 8])
    assert body.factors(attributes["split"]) == (segments, T) and tuple(attributes) == body.attributes


def test_names_tell_the_form_and_the_plain_one_has_the_name_of_the_plugin() -> None:
    assert len(BODIES) == 60 and Body().name == SEGMENTS
    full = Body(True, True, False, bias=True, gelu=True, scale=True, accumulate=True)
    assert full.name == f"{SEGMENTS}_trailing_gather_bias_gelu_scale_accumulate" and BODIES[full.name] == full
    assert full.inputs == ("X", "W", "B", "S", "A") and full.operands == ("bias", "scale", "accumulate")


@pytest.mark.skipif(RTX is not None, reason=str(RTX))
@pytest.mark.parametrize("trailing", [False, True])
def test_tensorrt_reshapes_no_constant_of_a_call(trailing: bool) -> None:
    """With constants of the rank that each step wants, a full epilogue is its five steps and the one reshape more."""
    plain, full = (Body(trailing, bias=on, gelu=on, scale=on, accumulate=on) for on in (False, True))
    kinds = [parse(fill_ranks.rewrite(model(body, operands(body)))[0]).total for body in (plain, full)]
    assert kinds[1].reshapes - kinds[0].reshapes == 1 and kinds[1].transposes == kinds[0].transposes
