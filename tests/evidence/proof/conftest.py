"""What the tests of the ladder can use."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mlpdeploy.graph.precision.typed import Typed
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import trace
from tests.evidence.proof.cases import Case, Half, Net, X, make_onnx, run_with


@pytest.fixture(scope="session")
def case() -> Case:
    """One for all files, which break copies of it."""
    torch.manual_seed(0)
    network = Net().eval().requires_grad_(False)
    rewritten = rewrite(trace(network, [X]))
    outputs = (replace(rewritten.outputs[0], name="y"),)
    half = Half(network)
    typed = Typed(half, "fp16", rewritten.inputs, outputs)  # type: ignore[arg-type]
    return Case(network, rewritten, typed, make_onnx(half), run_with(half))
