"""The plain export of a network: PyTorch's own exporter with no rule of ours, which every engine is held against."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import onnx
import torch
from torch import nn
from torch.utils import _pytree as pytree

from mlpdeploy.engine.onnx.emit import Emitted
from mlpdeploy.engine.onnx.functions import OPSET
from mlpdeploy.graph.precision.typed import Typed
from mlpdeploy.graph.tracing.quiet import quiet
from mlpdeploy.graph.tracing.rows import fixed_batch
from mlpdeploy.graph.tracing.trace import TensorSpec, dynamic_shapes, trace
from mlpdeploy.system.guest import copied

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

_SCOPES = "pkg.torch.onnx.name_scopes"


class _Ends(nn.Module):
    """A network whose floating-point inputs and outputs have another dtype than its own."""

    def __init__(self, network: nn.Module, own: torch.dtype, ends: torch.dtype) -> None:
        super().__init__()
        self.network, self.own, self.ends = network, own, ends

    def forward(self, *given: torch.Tensor) -> Any:
        return _cast(self.network(*_cast(given, self.own)), self.ends)


def plain(network: nn.Module, specs: Sequence[TensorSpec], precision: str, io: str | None = None) -> Emitted:
    """The network in fp32 or in `half()` as torch.onnx.export writes it, its nodes named `<module path>/<operation>`.

    Its floating-point inputs and outputs have the dtype of `io`, or the network's. The network that is given stays as
    it is.
    """
    dtype, ends = DTYPES[precision], DTYPES[io or precision]
    specs = [replace(spec, dtype=ends) if spec.dtype.is_floating_point else spec for spec in specs]
    # Tracing moves no weights, so the typed form of the plain graph is the network's own graph in that dtype.
    network = copied(network)
    for parameter in (*network.parameters(), *network.buffers()):
        if parameter.is_floating_point():  # complex ones stay as they are, as `half()` leaves them
            parameter.data = parameter.data.to(dtype)
    if ends != dtype:
        network = _Ends(network, dtype, ends)
    graph, fixed = trace(network, specs), fixed_batch(specs)
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network, tuple(spec.example(fixed or 2) for spec in specs), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=[spec.name for spec in specs], output_names=[output.name for output in graph.outputs],
            dynamic_shapes=dynamic_shapes(network, [None if fixed else {0: torch.export.Dim.DYNAMIC}] * len(specs)),
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    _name_nodes(model, "network." if ends != dtype else "")
    return Emitted(model, Typed(graph.module, precision, graph.inputs, graph.outputs))


def _cast(values: Any, dtype: torch.dtype) -> Any:
    """Tensors of real numbers in a dtype, the others as they are."""

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return pytree.tree_map(cast, values)


def _name_nodes(model: onnx.ModelProto, prefix: str) -> None:
    """The exporter keeps the modules that a node came from: the last but one is the innermost module's path.

    `prefix` is what paths begin with that is not the user's.
    """
    used: set[str] = set()
    for node in model.graph.node:
        scopes = next((prop.value for prop in node.metadata_props if prop.key == _SCOPES), "[]")
        path = (["", *ast.literal_eval(scopes)])[-2:][0].removeprefix(prefix)
        base = f"{path}/{node.op_type}" if path else node.op_type
        name, count = base, 1
        while name in used:
            name, count = f"{base}_{count}", count + 1
        used.add(name)
        node.name = name
