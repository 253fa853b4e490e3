"""Keys of attention turned right in front of their product: what takes the form, and what must not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from mlpdeploy.engine.backend import BuildRequest, backends
from mlpdeploy.engine.backends.tensorrt import TensorRT
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.form import prepare
from mlpdeploy.engine.forms import transpose_last
from mlpdeploy.engine.onnx.emit import Emitted, emit
from mlpdeploy.evidence.proof.runs import onnx_run
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from mlpdeploy.progress import Stages

CHANNELS, HEADS = 12, 3
Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Layers for a forward of its own on (b, ..., n, 12), with random parameters."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.own = forward
        self.q, self.k, self.v = (nn.Linear(CHANNELS, CHANNELS) for _ in range(3))
        self.out = nn.Linear(CHANNELS, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self, x)


def parted(x: Tensor, heads: int = HEADS) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k).softmax(-1) @ v).transpose(-2, -3).flatten(-2)


def attention(net: Net, x: Tensor) -> Tensor:
    return net.out(x + attended(parted(net.q(x)), parted(net.k(x)).mT, parted(net.v(x)))).mean(-2)


def twice(net: Net, x: Tensor) -> Tensor:
    return attention(net, x + attended(parted(net.q(x)), parted(net.k(x)).mT, parted(net.v(x))))


def one_head(net: Net, x: Tensor) -> Tensor:
    return net.out((net.q(x) @ net.k(x).mT).softmax(-1) @ net.v(x)).mean(-2)


def emitted(forward: Forward, shape: tuple[int, ...], precision: str = "fp32") -> Emitted:
    rewritten = rewrite(trace(Net(forward).eval(), [TensorSpec("x", shape, torch.float32)]))
    return emit(apply(rewritten, plan(rewritten, precision)))


def equal(model: onnx.ModelProto, other: onnx.ModelProto, shape: tuple[int, ...], batch: int, within: float) -> None:
    x = {"x": np.random.default_rng(batch).normal(size=(batch, *shape)).astype(np.float32)}
    first, second = (onnx_run(each, 1)(x)["output"] for each in (model, other))
    assert np.abs(first - second).max() <= within * np.abs(first).max()


@pytest.mark.parametrize(
    ("forward", "shape", "count"),
    [(attention, (7, CHANNELS), 1), (twice, (7, CHANNELS), 2), (attention, (4, 7, CHANNELS), 1)],
)
@pytest.mark.parametrize(("precision", "within"), [("fp32", 1e-6), ("fp16", 3e-3)])
def test_it_computes_the_same(
    forward: Forward, shape: tuple[int, ...], count: int, precision: str, within: float
) -> None:
    given = emitted(forward, shape, precision).model
    model, found = transpose_last.rewrite(given)
    onnx.checker.check_model(model, full_check=True)
    assert found == count
    products = [node.input[1] for node in model.graph.node if node.op_type == "MatMul"]
    transposes = [node for node in model.graph.node if node.op_type == "Transpose"]
    turned = {node.output[0]: list(node.attribute[0].ints)[-2:] for node in transposes}
    rank = len(shape) + 2
    assert sum(turned.get(name) == [rank - 1, rank - 2] for name in products) >= count
    for batch in (1, 3, 64):
        equal(given, model, shape, batch, within)


def test_what_is_turned_in_front_of_its_product_already_stays() -> None:
    given = emitted(one_head, (7, CHANNELS)).model
    assert transpose_last.rewrite(given) == (given, 0)


def file(perm: list[int], shape: list[int], *, output: bool = False, reader: bool = False) -> onnx.ModelProto:
    """q @ reshape(transpose(k)), whose operand is perhaps an output as well, or read by something else."""
    more = (", float[b, 2, 4, n] keys" if output else "") + (", float[b, 8, 6] other" if reader else "")
    made = f"""
        <ir_version: 10, opset_import: ["" : 20]>
        net (float[b, 2, 6, 4] q, float[b, 6, 8] k) => (float[b, 2, 6, n] y{more})
        <int64[4] sizes = {{{", ".join(map(str, shape))}}}>
        {{
            turned = Transpose <perm = [{", ".join(map(str, perm))}]> (k)
            keys = Reshape (turned, sizes)
            {"other = Relu (turned)" if reader else ""}
            y = MatMul (q, keys)
        }}
    """
    return onnx.shape_inference.infer_shapes(onnx.parser.parse_model(made))


NEAR_MISSES = {
    "the batch moves": file([1, 2, 0], [-1, 2, 4, 6]),
    "the tokens are parted": file([0, 2, 1], [-1, 2, 4, 12]),
    "the operand is an output": file([0, 2, 1], [-1, 2, 4, 6], output=True),
    "something else reads what was turned": file([0, 2, 1], [-1, 2, 4, 6], reader=True),
}


def test_the_file_that_near_misses_are_near_to() -> None:
    assert transpose_last.rewrite(file([0, 2, 1], [-1, 2, 4, 6]))[1] == 1


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_near_miss_stays(name: str) -> None:
    given = NEAR_MISSES[name]
    assert transpose_last.rewrite(given) == (given, 0)


@pytest.mark.slow
def test_tensorrt_rtx_launches_less(tmp_path: Path) -> None:
    backend = backends()["tensorrt-rtx"]
    if (reason := backend.available()) is not None:
        pytest.skip(reason)
    given, launches = emitted(twice, (17, CHANNELS), "fp16"), []
    for disabled in ((), ("transpose_last",)):
        folder = tmp_path / str(len(disabled))
        folder.mkdir()
        built = backend.build(given, BuildRequest("fp16", Batch(1, 8, 32), disabled=disabled), folder, Stages())
        launches.append(built.facts["launches"]["total"])
    assert launches[0] < launches[1]
    fired = {one.name: one.fired for one in prepare(given.model, TensorRT.forms, "fp16").forms}
    assert fired["transpose_last"] == 2
