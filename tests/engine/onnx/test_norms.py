"""Group and instance norms as ONNX: the same numbers as PyTorch's, and one layer in TensorRT."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from mlpdeploy.engine.onnx.emit import Emitted, emit
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from mlpdeploy.network import random_weights

NETWORKS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "one group": (nn.GroupNorm(1, 8), (8, 5, 6)),
    "one group, vectors": (nn.GroupNorm(1, 8, eps=0.1), (8,)),
    "four groups": (nn.GroupNorm(4, 8), (8, 5, 6)),
    "two groups, no scale": (nn.GroupNorm(2, 8, affine=False), (8, 5)),
    "instances": (nn.InstanceNorm2d(8), (8, 5, 6)),
    "instances, scaled": (nn.InstanceNorm1d(8, affine=True, eps=0.1), (8, 5)),
    "running statistics": (nn.InstanceNorm2d(8, affine=True, track_running_stats=True), (8, 5, 6)),
    "running statistics, no scale": (nn.InstanceNorm2d(8, track_running_stats=True), (8, 5, 6)),
}


def emitted(name: str, wanted: str) -> tuple[nn.Module, Emitted]:
    network, shape = NETWORKS[name]
    random_weights.randomise(network.eval(), 1)
    rewritten = rewrite(trace(network, [TensorSpec("x", shape, torch.float32)]))
    return network, emit(apply(rewritten, plan(rewritten, wanted)))


@pytest.mark.parametrize("name", NETWORKS)
def test_gives_what_pytorch_gives(name: str) -> None:
    network, found = emitted(name, "fp32")
    session = ort.InferenceSession(found.model.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        x = torch.randn(batch, *NETWORKS[name][1]) * 3 + 1
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], network(x).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_only_several_groups_reshape(name: str) -> None:
    operations = [node.op_type for node in emitted(name, "fp16")[1].model.graph.node]
    normalised = "BatchNormalization" if name.startswith("running") else "LayerNormalization"
    reshaped = ["Reshape"] if "groups" in name else []
    assert operations == ["Cast", *reshaped, normalised, *reshaped, "Cast"]
