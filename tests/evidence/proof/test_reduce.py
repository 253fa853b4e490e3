"""The smallest part that fails: whatever one number is broken, the part is the node that reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from mlpdeploy.engine.onnx.emit import Emitted, emit
from mlpdeploy.evidence.proof.reduce import Part, smallest
from mlpdeploy.evidence.proof.runs import Run, onnx_run, values
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from mlpdeploy.zoo.vip import VisionPermutator

ALLOWED = 6e-3


def opened(model: onnx.ModelProto) -> Run:
    onnx.checker.check_model(model, full_check=True)
    return onnx_run(model, 1)


def made(network: nn.Module, shape: tuple[int, ...], precision: str = "fp16") -> tuple[Emitted, dict[str, np.ndarray]]:
    """The file of a network, and what PyTorch gives for each operation of its graph."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    graph = rewrite(trace(network.eval(), [TensorSpec("input", shape, torch.float32)]))
    emitted = emit(apply(graph, plan(graph, precision)))
    rows = {"input": np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)}
    names = [spec.name for spec in emitted.typed.outputs]
    return emitted, values(emitted.typed.module, emitted.typed.inputs, names, rows)


def vip() -> nn.Module:
    return VisionPermutator(
        layers=(1,), dims=(32,), segments=(8,), transitions=(False,), patch_size=4, image_size=32, in_chans=3,
        num_classes=20,
    )  # fmt: skip


def broken(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The file with another weight of that name."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    (tensor,) = (one for one in changed.graph.initializer if one.name == name)
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((array * -3 + 1).astype(array.dtype), name))
    return changed


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_whatever_weight_is_broken_the_part_is_what_reads_it(precision: str) -> None:
    emitted, known = made(vip(), (3, 32, 32), precision)
    assert smallest(emitted.model, known, ALLOWED, opened) is None
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16)
    weights = [one.name for one in emitted.model.graph.initializer if one.data_type in kinds and len(one.dims)]
    assert len(weights) > 20
    for name in weights:
        part = smallest(broken(emitted.model, name), known, ALLOWED, opened)
        assert part is not None, name
        readers = {node.name for node in emitted.model.graph.node if name in node.input}
        assert readers & set(part.nodes) and len(part.nodes) <= 3, (name, part.nodes)
        assert len(part.outputs) == 1 and all(len(array) == 3 for array in part.inputs.values())
        assert max(part.errors.values()) > ALLOWED
        # The file of the part is whole: what it holds, and nothing else.
        used = {one for node in part.model.graph.node for one in node.input}
        assert {one.name for one in part.model.graph.initializer} <= used


def test_an_operation_that_is_computed_wrongly_is_found_by_what_it_should_give() -> None:
    """Not the file but what runs it is wrong: the third Gelu of four is a Relu."""
    network = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(24, 24), nn.GELU())))
    emitted, known = made(network, (24,), "fp32")
    names = [node.name for node in emitted.model.graph.node if node.op_type == "Gelu"]
    tries: list[onnx.ModelProto] = []

    def wrong(model: onnx.ModelProto) -> Run:
        tries.append(model)
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        for node in changed.graph.node:
            if node.name == names[2]:
                node.op_type = "Relu"
                del node.attribute[:]
        return onnx_run(changed, 1)

    part = smallest(emitted.model, known, ALLOWED, wrong)
    assert part is not None and part.nodes == (names[2],)
    assert len(tries) <= 10  # of 8 nodes, by bisection


def test_what_only_adds_up_is_as_long_as_it_must_be() -> None:
    """Each of twelve additions is off by less than is allowed, and together they are not."""
    nodes = [helper.make_node("Add", [f"v{i}", "one"], [f"v{i + 1}"], f"add{i}") for i in range(12)]
    one = numpy_helper.from_array(np.float32(1.002), "one")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("v0", "v12")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [one])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    known = {f"v{i}": np.full((3, 4), float(i), np.float32) for i in range(13)}
    known["v0"][:, 0] = 20.0
    known |= {f"v{i}": known["v0"] + i for i in range(13)}
    part = smallest(model, known, 5e-4, opened)
    assert part is not None and 3 <= len(part.nodes) < 12
    assert part.errors["v12"] > 5e-4 if "v12" in part.errors else max(part.errors.values()) > 5e-4
    assert smallest(model, known, 5e-3, opened) is None


@pytest.mark.parametrize(
    "spoil",
    [lambda known: known.pop("linear_default"), lambda known: known.update(linear_default=np.zeros((5, 24))),
     lambda known: known.update(linear_default=np.zeros((3, 24, 1)))],
    ids=["unknown", "other rows", "other axes"],
)  # fmt: skip
def test_a_part_goes_on_to_where_the_right_value_is_known(spoil: Callable[[Any], Any]) -> None:
    network = nn.Sequential(nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 24))
    emitted, known = made(network, (24,), "fp32")
    assert "linear_default" in known
    spoil(known)
    weight = next(one.name for one in emitted.model.graph.initializer if list(one.dims) == [24, 24])
    part = smallest(broken(emitted.model, weight), known, ALLOWED, opened)
    assert isinstance(part, Part) and len(part.nodes) == 2 and part.nodes[1].endswith("Gelu")
