"""Kernels of convolutions in packages for a GPU: their channels are last in memory, and so are the maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mlpdeploy.engine import nvidia, programs
from mlpdeploy.engine.backend import BuildRequest, backends
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.nvidia import CURRENT
from mlpdeploy.engine.onnx.emit import Emitted
from mlpdeploy.graph.kinds import CONVOLUTIONS_OF_IMAGES
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import Typed, apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from tests.engine.backends.test_cpu_engines import Silent
from tests.engine.small_networks import emitted


class Convolves(nn.Module):
    """Kernels of one and of several places, grouped, by channel and transposed, one twice, and one that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mixed = nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 8, 1)
        self.grouped, self.depthwise = (nn.Conv2d(8, 8, 3, padding="same", groups=groups) for groups in (4, 8))
        self.larger = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.line = nn.Conv1d(6, 6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.grouped(self.mixed(self.patches(x)))
        y = self.depthwise(self.depthwise(y)).sin()
        y = nn.functional.conv2d(y, x[0, :2, :4, :1, None].reshape(1, 8, 1, 1).expand(8, 8, 1, 1))
        found: torch.Tensor = self.line(self.larger(y).flatten(2)).mean(2)
        return found


def typed(precision: str = "fp32") -> Typed:
    torch.manual_seed(0)
    traced = trace(Convolves().eval(), [TensorSpec("x", (3, 16, 16), torch.float32)])
    rewritten = rewrite(traced, disabled=("project_patches",))
    return apply(rewritten, plan(rewritten, precision))


def convolved(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    return [node for node in graph.nodes if node.target in CONVOLUTIONS_OF_IMAGES]


def lies_last(one: torch.Tensor) -> bool:
    """Whether channels are last, also by the strides of axes of size 1: PyTorch reads a memory format off them."""
    return one.stride()[1] == 1 and one.stride()[3] == one.shape[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kernels_are_laid_once_and_the_given_graph_stays(precision: str) -> None:
    given = typed(precision)
    before = {name: one.clone() for name, one in given.module.state_dict().items()}
    laid = programs.for_gpu(given)
    kernels = [one for one in laid.module.parameters() if one.dim() == 4]
    assert len(kernels) >= 4 and all(map(lies_last, kernels))
    assert not any(lies_last(one) for one in given.module.parameters() if one.dim() == 4)
    after = given.module.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    new = laid.module.state_dict().keys() - before.keys()
    assert new == {"grouped_weight_taps"}  # of the one whose groups have several channels
    assert all(torch.equal(one, before[name]) for name, one in laid.module.state_dict().items() if name not in new)
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        wanted, found = (one.module(x)[0].float() for one in (given, laid))
    assert torch.allclose(found, wanted, rtol=0, atol={"fp32": 1e-6, "bf16": 2e-2}[precision])


def test_maps_of_a_free_batch_lie_as_their_kernels() -> None:
    def maps(of: Typed) -> list[bool]:
        program = programs.exported(Emitted(emitted("fp32").model, of), Batch(1, 4, 8))
        nodes = [node for node in convolved(program.graph) if "expand" not in node.args[1].name]
        return [lies_last(node.meta["val"]) for node in nodes]

    given = typed()
    assert not any(maps(given)) and len(maps(given)) >= 5
    assert all(maps(programs.for_gpu(given)))


@pytest.mark.parametrize("gpus", [(), (CURRENT,)])
def test_inductor_is_given_kernels_laid_for_a_gpu_alone(
    gpus: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def compiled(program: Any, package_path: str, **options: Any) -> None:
        seen.append(program)
        Path(package_path).write_bytes(b"package")

    monkeypatch.setattr("torch.export.passes.move_to_device_pass", lambda program, device: program)
    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", compiled)
    monkeypatch.setattr(nvidia, "probe", lambda: nvidia.Gpu("Stand-in", "sm90", "13.0"))
    monkeypatch.setattr(programs, "unserved", lambda gpu: None)
    monkeypatch.setattr(programs, "tune", lambda module, batch: None)
    request = BuildRequest("fp32", Batch(1, 2, 4), gpus)
    backends()["inductor"].build(Emitted(emitted("fp32").model, typed()), request, tmp_path, Silent())
    (program,) = seen
    kernels = [one for one in program.state_dict.values() if one.dim() == 4]
    assert kernels and {lies_last(one) for one in kernels} == {bool(gpus)}
