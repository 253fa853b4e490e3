"""Norms over whole maps in two stages: what takes the form, what must not, and that TensorRT-RTX then launches less."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from mlpdeploy.engine.backend import BuildRequest, backends
from mlpdeploy.engine.backends.tensorrt import TensorRT, _programme
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.form import prepare
from mlpdeploy.engine.forms import spread_norms, stage_norms
from mlpdeploy.engine.onnx.emit import Emitted, emit
from mlpdeploy.evidence.proof.runs import onnx_run
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace

MAPS = {
    "channels first": ((40, 21, 20), [1]),
    "the last axis first": ((400, 7, 7), [3]),
    "both first": ((100, 170, 110), [1, 3]),
    "a sequence": ((12, 1400), [1]),
    "a long sequence": ((512, 16385), []),
    "a short sequence": ((600, 40), [2]),
    "few rows in any case": ((256, 256, 1), [1]),
    "three axes of places": ((8, 10, 15, 14), [1]),
    "what one launch does": ((64, 15, 17), []),
    "a number more": ((64, 16, 16), [3]),
}
"""Shapes, and the axes of the first stage."""
EPSILON = 1e-6


class Silent:
    def step(self, phase: str, done: int, total: int) -> None: ...


def norm(channels: int, groups: int = 1, affine: bool = True) -> nn.Module:
    torch.manual_seed(channels)
    made = nn.GroupNorm(groups, channels, eps=EPSILON, affine=affine)
    for parameter in made.parameters():
        nn.init.normal_(parameter, mean=0.5)
    return made.eval().requires_grad_(False)


def emitted(made: nn.Module, shape: tuple[int, ...], precision: str = "fp32") -> Emitted:
    rewritten = rewrite(trace(made, [TensorSpec("x", shape, torch.float32)]))
    return emit(apply(rewritten, plan(rewritten, precision)))


def maps(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Maps of one network, by what they are."""
    values = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
    hot = np.zeros_like(values)
    hot[(slice(None), *(0 for _ in shape))] = 100
    apart = values + 300 * np.arange(shape[0], dtype=np.float32).reshape(-1, *(1 for _ in shape[1:]))
    return {
        "random": values, "one image": values[:1], "far from 0": 1000 + values, "black": np.zeros_like(values),
        "flat": np.full_like(values, 7), "one hot place": hot, "channels far apart": apart,
    }  # fmt: skip


@pytest.mark.parametrize("name", MAPS)
def test_which_axes_are_first(name: str) -> None:
    shape, wanted = MAPS[name]
    model, found = stage_norms.rewrite(emitted(norm(shape[0]), shape).model)
    assert found == bool(wanted) and wanted == [
        axis
        for node in model.graph.node
        if node.output[0].endswith("/0")
        for axis in numpy_helper.to_array(node.attribute[0].t).tolist()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (_, axes) in MAPS.items() if axes])
def test_the_file_computes_the_same(name: str) -> None:
    """No further from float64 than the same operations over all axes at once, or some roundings of the largest."""
    shape, _ = MAPS[name]
    given = emitted(made := norm(shape[0]), shape).model
    staged, found = stage_norms.rewrite(given)
    onnx.checker.check_model(staged, full_check=True)
    assert found == 1 and not any(node.op_type == "LayerNormalization" for node in staged.graph.node)
    runs, made = [ReferenceEvaluator(one).run for one in (staged, spread_norms.rewrite(given)[0])], made.double()
    for what, x in maps(shape).items():
        wanted = made(torch.from_numpy(x).double()).numpy()
        ours, theirs = (abs(run(None, {"x": x})[0] - wanted).max() for run in runs)
        assert ours <= max(2 * theirs, 4e-6 * abs(wanted).max()), what


def test_a_norm_without_scale_and_shift_and_one_of_negative_axis() -> None:
    shape, _ = MAPS["channels first"]
    given = emitted(norm(shape[0], affine=False), shape).model
    counted = onnx.ModelProto()
    counted.CopyFrom(given)
    (node,) = (node for node in counted.graph.node if node.op_type == "LayerNormalization")
    (axis,) = (attribute for attribute in node.attribute if attribute.name == "axis")
    axis.i -= 4
    x = {"x": maps(shape)["random"]}
    results = [onnx_run(stage_norms.rewrite(one)[0], 1)(x)["output"] for one in (given, counted)]
    assert np.array_equal(*results)
    assert np.allclose(results[0], onnx_run(given, 1)(x)["output"], rtol=0, atol=1e-5)


class Channels(nn.Module):
    """A norm over channels alone, as Mixer has it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.flatten(2).transpose(1, 2))


NEAR_MISSES = {
    "several groups": (norm(8, groups=2), (8, 64, 64)),
    "an instance norm": (nn.InstanceNorm2d(8, affine=True).eval(), (8, 64, 64)),
    "channels alone": (Channels().eval(), (6, 64, 64)),
    "one axis": (nn.LayerNorm(20000).eval(), (20000,)),
    "places alone": (nn.LayerNorm((160, 160)).eval(), (2, 160, 160)),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_near_miss_stays(name: str) -> None:
    model = emitted(*NEAR_MISSES[name]).model
    assert any(node.op_type == "LayerNormalization" for node in model.graph.node)
    assert stage_norms.rewrite(model) == (model, 0)


def test_a_norm_of_a_scale_for_every_number_is_staged_too() -> None:
    made = nn.LayerNorm(shape := (8, 50, 50)).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, mean=0.5)
    given = emitted(made, shape).model
    staged, found = stage_norms.rewrite(given)
    x = {"x": maps(shape)["random"]}
    assert found == 1
    assert np.allclose(onnx_run(staged, 1)(x)["output"], onnx_run(given, 1)(x)["output"], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "places"), [(64, 56), (64, 224), (512, 7)])
def test_tensorrt_rtx_launches_less(channels: int, places: int, tmp_path: Path) -> None:
    """Two launches a norm less, as none waits for blocks of another sum."""
    backend = backends()["tensorrt-rtx"]
    if (reason := backend.available()) is not None:
        pytest.skip(reason)
    wide = nn.Conv2d(channels, channels, 3, padding=1)
    made = nn.Sequential(nn.Conv2d(3, channels, 1), norm(channels), wide, norm(channels), nn.Conv2d(channels, 8, 1))
    given, launches = emitted(made.eval(), (3, places, places), "fp16"), []
    for disabled in ((), ("stage_norms",)):
        folder = tmp_path / str(len(disabled))
        folder.mkdir()
        built = backend.build(given, BuildRequest("fp16", Batch(1, 8, 32), disabled=disabled), folder, Silent())
        launches.append(built.facts["launches"]["total"])
    assert launches[0] <= launches[1] - 4
    built = backend.build(given, BuildRequest("fp16", Batch(4, 4, 4)), tmp_path, Silent())
    (programme,) = _programme.read(built.engine.read_bytes()).values()
    written = [programme.tensors[name] for one in programme.statements for name in one.writes]
    whole = 4 * channels * places**2
    assert any(one.dtype == "half" and math.prod(one.dimensions) == whole for one in written)
    assert not any(one.dtype == "float" and math.prod(one.dimensions) == whole for one in written)
    assert {one.name: one.fired for one in prepare(given.model, TensorRT.forms, "fp16").forms}["stage_norms"] == 2
