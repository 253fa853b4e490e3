"""Transposes of a grid in OpenVINO, which would keep a layout of its own choice for all additions behind one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from mlpdeploy.engine.backend import BuildRequest, backends
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.forms import flatten_grids
from mlpdeploy.engine.onnx.emit import Emitted, emit
from mlpdeploy.evidence.proof.runs import onnx_run
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace


class Silent:
    def step(self, phase: str, done: int, total: int) -> None: ...


class There(nn.Module):
    """A convolution, residual blocks on channels last, and, where asked for, another convolution behind them."""

    def __init__(self, back: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.last = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 5, 1) if back else nn.Linear(8, 5)
        self.norm, self.fc, self.back = nn.LayerNorm(8), nn.Linear(8, 8), back

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).permute(0, 2, 3, 1)
        x = x + self.fc(self.norm(x))
        x = x + self.fc(self.norm(x))
        return self.last(x.permute(0, 3, 1, 2)) if self.back else self.last(x)


def emitted(back: bool, precision: str = "fp32") -> Emitted:
    made = There(back).eval().requires_grad_(False)
    rewritten = rewrite(trace(made, [TensorSpec("x", (3, 6, 10), torch.float32)]))
    return emit(apply(rewritten, plan(rewritten, precision)))


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3, 6, 10)).astype(np.float32)


def orders(model: onnx.ModelProto) -> list[list[int]]:
    return [list(node.attribute[0].ints) for node in model.graph.node if node.op_type == "Transpose"]


@pytest.mark.parametrize(("back", "grid"), [(False, [[0, 2, 3, 1]]), (True, [[0, 2, 3, 1], [0, 3, 1, 2]])])
def test_the_flat_file_computes_the_same_to_the_bit(back: bool, grid: list[list[int]]) -> None:
    given = emitted(back).model
    before = given.SerializeToString()
    flat = flatten_grids.rewrite(given)[0]
    onnx.checker.check_model(flat)
    assert (orders(given), orders(flat)) == (grid, [[0, 2, 1]] * len(grid))
    for count in (1, 2, 7):
        first, second = (next(iter(onnx_run(m, 1)({"x": images(count)}).values())) for m in (given, flat))
        assert first.shape == second.shape and (first == second).all()
    assert given.SerializeToString() == before


def test_other_transposes_and_unknown_sizes_stay() -> None:
    given = emitted(True).model
    for node in given.graph.node:
        if node.op_type == "Transpose":
            node.attribute[0].ints[:] = [0, 1, 3, 2]
    assert flatten_grids.rewrite(given) == (given, 0)
    unknown = emitted(True).model
    del unknown.graph.value_info[:]
    assert flatten_grids.rewrite(unknown) == (unknown, 0)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("back", [False, True])
def test_openvino_computes_it(back: bool, precision: str, tmp_path: Path) -> None:
    backend = backends()["openvino"]
    if (reason := backend.available()) is not None:
        pytest.skip(reason)
    given = emitted(back, precision)
    built = backend.build(given, BuildRequest(precision, Batch(1, 2, 4), threads=1), tmp_path, Silent())
    expected = next(iter(onnx_run(emitted(back).model, 1)({"x": images(3)}).values()))
    with backend.load(built.engine, built.facts) as run:
        got = next(iter(run({"x": images(3)}).values()))
    assert np.abs(got - expected).max() <= (1e-5 if precision == "fp32" else 2e-2) * np.abs(expected).max()
