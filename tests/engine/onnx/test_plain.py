"""The plain export, which engines are held against."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from mlpdeploy.engine.onnx.plain import plain
from mlpdeploy.graph.tracing.trace import TensorSpec


class Turned(nn.Module):
    """A complex weight between real layers; a buffer, and a parameter that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.turn = nn.Linear(4, 6), nn.Parameter(torch.randn(6, 6, dtype=torch.complex64))
        self.second = nn.Linear(6, 6)
        self.third = nn.Linear(6, 6)
        self.third.weight = self.second.weight
        self.register_buffer("scale", torch.full((6,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.view_as_real(self.first(x).to(torch.complex64) @ self.turn).sum(-1)
        found: Tensor = self.third(self.second(y.to(x.dtype)) * self.scale)
        return found


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", np.float32), ("fp16", np.float16)])
def test_it_computes_what_the_network_computes_and_leaves_it_alone(precision: str, dtype: type[np.generic]) -> None:
    torch.manual_seed(0)
    network = Turned().eval().requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    exported = plain(network, [TensorSpec("x", (4,), torch.float32)], precision)
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(dtype)
    session = onnxruntime.InferenceSession(exported.model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    wanted = network(torch.from_numpy(x.astype(np.float32))).numpy()
    assert found.dtype == dtype and abs(found - wanted).max() < (1e-5 if precision == "fp32" else 3e-2)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_its_ends_may_have_another_dtype_and_its_nodes_keep_their_names() -> None:
    network = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)).eval().requires_grad_(False)
    specs = [TensorSpec("x", (4,), torch.float32)]
    own, wide = plain(network, specs, "fp16"), plain(network, specs, "fp16", io="fp32")
    assert {node.name for node in own.model.graph.node} <= {node.name for node in wide.model.graph.node}
    assert [node.op_type for node in wide.model.graph.node] == ["Cast", "Gemm", "Gemm", "Cast"]
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(wide.model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    with torch.inference_mode():
        typed = wide.typed.module(torch.from_numpy(x))
    assert found.dtype == np.float32 and typed[0].dtype == torch.float32
    assert abs(found - network(torch.from_numpy(x)).numpy()).max() < 3e-2
