"""Small networks as the emitter would hand them to a backend, made here by hand so that only backends are tested."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from mlpdeploy.engine.onnx.emit import Emitted
from mlpdeploy.graph.precision.typed import Typed
from mlpdeploy.graph.tracing.trace import TensorSpec

TORCH = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# A network of five roundings agrees to a few units in the last place of its largest output.
TOLERANCE = {"fp32": 1e-5, "tf32": 2e-3, "fp16": 4e-3, "bf16": 3e-2}
SHAPE = (3, 8, 8)


class Mixer(nn.Module):
    """Patch embedding, one token-mixing and one channel-mixing layer, in one dtype between FP32 ends."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.norm = nn.LayerNorm(16)
        self.tokens = nn.Linear(4, 4)
        self.channels = nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)
        self.dtype = dtype
        self.to(dtype)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor]:
        x = self.stem(image.to(self.dtype)).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(F.gelu(x))
        return (self.head(x.mean(1)).float(),)


@functools.cache
def emitted(precision: str) -> Emitted:
    """The mixer in one precision; its Gelu is a local function, its ends are `image` and `logits`."""
    with torch.no_grad():
        network = Mixer(TORCH[precision]).eval()
        batch = torch.export.Dim("batch", min=1, max=64)
        exported = torch.export.export(network, (images(3),), dynamic_shapes=({0: batch},))
        program = torch.onnx.export(
            exported, (), dynamo=True, opset_version=20, verbose=False, input_names=["image"], output_names=["logits"]
        )
        module = exported.module()
    typed = Typed(
        module=module,
        precision=precision,
        inputs=(TensorSpec("image", SHAPE, torch.float32),),
        outputs=(TensorSpec("logits", (5,), torch.float32),),
    )
    return Emitted(model=with_local_function(program.model_proto), typed=typed)


def images(batch: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(seed))


def reference(precision: str, batch: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return Mixer(TORCH[precision]).eval()(batch)[0].numpy()


def with_local_function(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every Gelu becomes a call of the local function mlpdeploy::activation, whose body is Gelu."""
    gelus = [node for node in model.graph.node if node.op_type == "Gelu"]
    assert gelus
    for node in gelus:
        node.op_type, node.domain = "activation", "mlpdeploy"
        del node.attribute[:]
    opset = helper.make_opsetid("", 20)
    body = [helper.make_node("Gelu", ["X"], ["Y"], name="body_gelu")]
    model.functions.append(helper.make_function("mlpdeploy", "activation", ["X"], ["Y"], body, [opset]))
    model.opset_import.append(helper.make_opsetid("mlpdeploy", 1))
    return model


def graph_model(
    nodes: list[onnx.NodeProto],
    ins: dict[str, tuple[int, list[int | str]]],
    outs: dict[str, tuple[int, list[int | str]]],
    weights: dict[str, np.ndarray] | None = None,
    functions: tuple[onnx.FunctionProto, ...] = (),
) -> onnx.ModelProto:
    """A model from its parts: ports are name -> (element type, shape)."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, *port) for name, port in ins.items()],
        [helper.make_tensor_value_info(name, *port) for name, port in outs.items()],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("mlpdeploy", 1)]
    model = helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    return model


def projection_function() -> onnx.FunctionProto:
    """mlpdeploy::project: permute, multiply, permute back; a reshape before and after."""
    ints = [("split", [0, 4, 3, 2]), ("join", [0, 3, 8]), ("back", [0, 3, 4, 2]), ("flat", [0, 4, 6])]
    constants = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(value, np.int64)))
        for name, value in ints
    ]
    body = [
        helper.make_node("Reshape", ["X", "split"], ["a"], name="split"),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1, 3], name="there"),
        helper.make_node("Reshape", ["b", "join"], ["c"], name="join"),
        helper.make_node("MatMul", ["c", "W"], ["d"], name="multiply"),
        helper.make_node("Reshape", ["d", "back"], ["e"], name="unjoin"),
        helper.make_node("Transpose", ["e"], ["f"], perm=[0, 2, 1, 3], name="back"),
        helper.make_node("Reshape", ["f", "flat"], ["Y"], name="flat"),
    ]
    opset = helper.make_opsetid("", 20)
    return helper.make_function("mlpdeploy", "project", ["X", "W"], ["Y"], [*constants, *body], [opset])


def projections(kind: int = TensorProto.FLOAT16) -> onnx.ModelProto:
    """Two calls of `project` and one transpose outside: (batch, 4, 6) -> (batch, 6, 4)."""
    dtype = {TensorProto.FLOAT16: np.float16, TensorProto.FLOAT: np.float32}[kind]
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(dtype)
    nodes = [
        helper.make_node("project", ["x", "w"], ["u"], domain="mlpdeploy", name="blocks.0/height"),
        helper.make_node("project", ["u", "w"], ["v"], domain="mlpdeploy", name="blocks.1/height"),
        helper.make_node("Transpose", ["v"], ["y"], perm=[0, 2, 1], name="outside"),
    ]
    ports = {"x": (kind, ["batch", 4, 6])}, {"y": (kind, ["batch", 6, 4])}
    return graph_model(nodes, *ports, {"w": weight}, (projection_function(),))
