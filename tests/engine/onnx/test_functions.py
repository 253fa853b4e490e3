"""The ONNX functions of segment-grouped projections: each body computes what the operation means."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from mlpdeploy.engine.backend import backends
from mlpdeploy.engine.backends.tensorrt import parse
from mlpdeploy.engine.forms import fill_ranks
from mlpdeploy.engine.onnx.emit import emit
from mlpdeploy.engine.onnx.functions import BODIES, OPSET, SEGMENTS, Body, functions
from mlpdeploy.graph import custom_ops
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace

RTX = backends()["tensorrt-rtx"].available()
B, P, Q, S, K, T, BEHIND = 3, 4, 6, 5, 2, 7, 3


def operands(body: Body) -> dict[str, Any]:
    """Arguments of the operation for a body: P and K are 1 where it neither gathers nor scatters."""
    p, k = (P if body.gathers else 1), (K if body.scatters else 1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, p, Q, S, *[BEHIND] * body.trailing, generator=generator)
    return {"x": x, "weight": torch.randn(k * T, p * S, generator=generator) / (p * S) ** 0.5, "segments": k}


def model(body: Body, given: dict[str, Any]) -> onnx.ModelProto:
    """One call of the body, whose weight is a constant."""
    x, shape = given["x"], custom_ops.by_permuting(**given).shape
    weight = given["weight"] if body.trailing else given["weight"].T.contiguous()
    attributes = body.attributes_of(x.shape, given["segments"], T)
    node = helper.make_node(body.name, ["x", "w"], ["y"], "one", domain=custom_ops.DOMAIN, **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *x.shape[1:]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *shape[1:]])],
        [numpy_helper.from_array(weight.numpy(), "w")],
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
        (got,) = session.run(None, {"x": given["x"].numpy()})
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted.numpy(), rtol=0, atol=2e-5 * abs(wanted.numpy()).max())


@pytest.mark.parametrize("name", BODIES)
def test_k_and_t_are_read_back_from_a_call(name: str) -> None:
    body = BODIES[name]
    segments = K if body.scatters else 1
    attributes = body.attributes_of((1, P, Q, S, BEHIND), segments, T)
    assert body.factors(attributes["split"]) == (segments, T) and tuple(attributes) == body.attributes


def test_names_tell_the_form_and_the_plain_one_has_the_name_of_the_plugin() -> None:
    assert len(BODIES) == 5 and Body().name == SEGMENTS == Body.of((1, P, Q, S), K).name
    assert Body.of((1, 1, Q, S, BEHIND), K).name == f"{SEGMENTS}_trailing_scatter"


@pytest.mark.skipif(RTX is not None, reason=str(RTX))
@pytest.mark.parametrize("name", BODIES)
def test_tensorrt_reshapes_no_constant_of_a_call(name: str) -> None:
    """With a constant of the rank that the product wants, two reshapes are left: to a matrix and back."""
    assert parse(fill_ranks.rewrite(model(BODIES[name], operands(BODIES[name])))[0]).total.reshapes == 2


class Raft(nn.Module):
    """Vertical mixing of rafts with a bias, an activation and a residual: what the kernel's epilogue computes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.unflatten(-1, (2, 4)).permute(0, 2, 4, 1, 3).flatten(3)
        y = self.down(F.gelu(self.up(y))).unflatten(-1, (3, 2)).permute(0, 3, 1, 4, 2).flatten(3)
        return x + y


def test_what_follows_a_projection_stands_behind_its_call() -> None:
    network = Raft().eval()
    spec = TensorSpec("x", (3, 5, 8), torch.float32)
    rewritten = rewrite(trace(network, [spec]), enabled=["fuse_epilogues"])
    assert sum(node.target is custom_ops.WITH_EPILOGUE for node in rewritten.module.graph.nodes) == 2
    made = emit(apply(rewritten, plan(rewritten, "fp32", "fp32"))).model
    assert {function.name for function in made.functions} <= set(BODIES) and len(made.functions) == 2
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 7):
        x = torch.randn(batch, 3, 5, 8)
        with torch.no_grad():
            wanted = network(x).numpy()
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], wanted, rtol=0, atol=1e-5)
