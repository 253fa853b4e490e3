"""Group and instance norms in OpenVINO, whose own LayerNormalization does not take a scale that broadcasts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from mlpdeploy.engine.backend import BuildRequest, backends
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.forms import spread_norms
from mlpdeploy.engine.onnx.emit import Emitted, emit
from mlpdeploy.evidence.proof.runs import onnx_run
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace

NORMS = {
    "one group": nn.GroupNorm(1, 8),
    "groups": nn.GroupNorm(4, 8),
    "no affine": nn.GroupNorm(1, 8, affine=False),
    "instance": nn.InstanceNorm2d(8, affine=True),
}


class Silent:
    def step(self, phase: str, done: int, total: int) -> None: ...


def network(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), norm, nn.GELU(), nn.Conv2d(8, 4, 1))
    for parameter in made.parameters():
        nn.init.normal_(parameter, mean=0.2, std=0.4)
    return made.eval().requires_grad_(False)


def emitted(made: nn.Module, precision: str = "fp32") -> Emitted:
    rewritten = rewrite(trace(made, [TensorSpec("x", (3, 6, 7), torch.float32)]))
    return emit(apply(rewritten, plan(rewritten, precision)))


def images(count: int) -> np.ndarray:
    return 3 + 2 * np.random.default_rng(count).standard_normal((count, 3, 6, 7)).astype(np.float32)


@pytest.mark.parametrize("name", list(NORMS))
def test_the_spread_file_computes_the_same(name: str) -> None:
    given = emitted(network(NORMS[name])).model
    spread = spread_norms.rewrite(given)[0]
    onnx.checker.check_model(spread)
    assert not any(node.op_type == "LayerNormalization" for node in spread.graph.node)
    first, second = (onnx_run(model, 1)({"x": images(3)})["output"] for model in (given, spread))
    assert np.allclose(first, second, rtol=0, atol=1e-5 * abs(first).max())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", list(NORMS))
def test_openvino_builds_and_runs_it(name: str, precision: str, tmp_path: Path) -> None:
    made, backend = network(NORMS[name]), backends()["openvino"]
    request = BuildRequest(precision, Batch(1, 2, 5), threads=1)
    built = backend.build(emitted(made, precision), request, tmp_path, Silent())
    with backend.load(built.engine, built.facts) as run:
        for count in (1, 2, 5):
            wanted = made(torch.from_numpy(images(count))).numpy()
            (found,) = run({"x": images(count)}).values()
            assert abs(found - wanted).max() < (1e-5 if precision == "fp32" else 1e-2) * abs(wanted).max()


@pytest.mark.parametrize("name", list(NORMS))
def test_a_flat_image_is_normalised_by_an_epsilon_that_fp16_does_not_have(name: str, tmp_path: Path) -> None:
    norm = NORMS[name]
    norm.eps = 1e-9
    made, backend = (
        nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), norm, nn.Conv2d(8, 4, 1)).eval(),
        backends()["openvino"],
    )
    built = backend.build(emitted(made, "fp16"), BuildRequest("fp16", Batch(1, 2, 5), threads=1), tmp_path, Silent())
    with backend.load(built.engine, built.facts) as run:
        (found,) = run({"x": np.zeros((2, 3, 6, 7), np.float32)}).values()
    wanted = made(torch.zeros(2, 3, 6, 7)).detach().numpy()
    assert abs(found - wanted).max() < 1e-2 * abs(wanted).max()


def test_a_norm_over_the_last_axis_stays_as_it_is() -> None:
    made = nn.Sequential(nn.LayerNorm(7), nn.Linear(7, 7)).eval()
    model = emitted(made).model
    assert spread_norms.rewrite(model) == (model, 0) and any(
        n.op_type == "LayerNormalization" for n in model.graph.node
    )


class TwoAxes(nn.Module):
    """A norm over the last two of four axes, as RaftMLP has it, whose scale has a number for every element."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm((6, 7)), nn.Linear(7, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(x))


def test_a_norm_over_two_axes_whose_scale_is_whole_stays_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made, backend = TwoAxes().eval(), backends()["openvino"]
    for parameter in made.parameters():
        nn.init.normal_(parameter, mean=0.2, std=0.4)
    given = emitted(made)
    assert spread_norms.rewrite(given.model) == (given.model, 0)
    built = backend.build(given, BuildRequest("fp32", Batch(1, 2, 5), threads=1), tmp_path, Silent())
    with backend.load(built.engine, built.facts) as run:
        (found,) = run({"x": images(3)}).values()
    wanted = made(torch.from_numpy(images(3))).detach().numpy()
    assert abs(found - wanted).max() < 1e-5 * abs(wanted).max()


def test_axes_are_counted_from_the_back_too() -> None:
    """A file may say the axis of the same norm as -3."""
    given = emitted(network(NORMS["one group"])).model
    counted = onnx.ModelProto()
    counted.CopyFrom(given)
    (norm,) = (node for node in counted.graph.node if node.op_type == "LayerNormalization")
    (axis,) = (attribute for attribute in norm.attribute if attribute.name == "axis")
    axis.i -= 4
    first, second = (
        onnx_run(model, 1)({"x": images(3)})["output"] for model in (given, spread_norms.rewrite(counted)[0])
    )
    assert np.allclose(first, second, rtol=0, atol=1e-5 * abs(first).max())
