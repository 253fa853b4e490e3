"""Circular padding in OpenVINO, which reads no `Pad` that wraps around."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mlpdeploy
from mlpdeploy.engine.backends.openvino import _reason
from mlpdeploy.engine.forms import part_wraps
from mlpdeploy.engine.onnx.emit import Emitted, emit
from mlpdeploy.evidence.proof.runs import onnx_run
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace


class Padded(nn.Module):
    """A circular padding by (left, right, top, bottom), or another one."""

    def __init__(self, pads: tuple[int, ...], mode: str = "circular") -> None:
        super().__init__()
        self.pads, self.mode = pads, mode

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x.sin(), self.pads, self.mode).exp()


def emitted(network: nn.Module) -> Emitted:
    rewritten = rewrite(trace(network, [TensorSpec("x", (3, 6, 5), torch.float32)]))
    return emit(apply(rewritten, plan(rewritten, "fp32")))


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3, 6, 5)).astype(np.float32)


@pytest.mark.parametrize("pads", [(1, 1, 1, 1), (2, 0, 0, 3), (0, 4, 0, 0), (5, 5, 6, 6), (0, 0, 1, 0)])
def test_the_parts_are_the_padding_to_the_bit(pads: tuple[int, ...]) -> None:
    given = emitted(Padded(pads)).model
    before = given.SerializeToString()
    parted = part_wraps.rewrite(given)[0]
    assert given.SerializeToString() == before
    assert not [node for node in parted.graph.node if node.op_type == "Pad"]
    for count in (1, 3):
        x = {"x": images(count)}
        (found,), (expected,) = (onnx_run(one, 1)(x).values() for one in (parted, given))
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate"])
def test_other_paddings_stay(mode: str) -> None:
    given = emitted(Padded((1, 1, 1, 1), mode)).model
    assert part_wraps.rewrite(given) == (given, 0)


@pytest.mark.slow
def test_openvino_computes_a_circular_convolution(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=(2, 1), padding_mode="circular"), nn.GELU()).eval()
    for precision in ("fp32", "fp16"):
        x = torch.from_numpy(images(2))
        engine = mlpdeploy.compile(network, x, precision=precision, backend="openvino", batch="1:2:3", out=tmp_path)
        assert engine.verify(network).passed


REPORT = """Check 'false' failed at unconverted_ops_report.cpp:151:
FrontEnd API failed with OpConversionFailure:
Model wasn't fully converted. Failed operations detailed log:
-- Conv-20 with a message:
While validating ONNX node '<Node(Conv): k/Conv>': Check 'rank().is_static()' failed at conv.cpp:38:
FrontEnd API failed with GeneralFailure:
The input data tensor's rank has to be known (static)

-- Pad-20 with a message:
While validating ONNX node '<Node(Pad): k/Pad>': Exception from pad.cpp:32:
Unsupported padding mode: [wrap]
"""


def test_of_what_openvino_cannot_read_the_cause_is_told() -> None:
    assert _reason(RuntimeError(REPORT)) == "Unsupported padding mode: [wrap]"
    assert _reason(RuntimeError("one line")) == "one line"
    assert _reason(RuntimeError("-- No conversion rule found for operations: Foo\nSee it")).endswith("operations: Foo")
