"""Stage 4: the typed graph becomes one ONNX file that every backend reads."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx
import onnx_ir as ir
import onnxscript
import torch
from onnxscript import opset20
from onnxscript.version_converter import convert_version
from torch import fx
from torch.export import ExportedProgram
from torch.onnx._internal.exporter._core import exported_program_to_ir
from torch.onnx._internal.exporter._registration import ONNXRegistry

from mlpdeploy.engine.base import one_line
from mlpdeploy.engine.onnx import attention, elementary, fp4, lacking, norms, token_mlps
from mlpdeploy.engine.onnx.coded import keep_relu, pack_blocks, transpose_codes
from mlpdeploy.engine.onnx.functions import BODIES, OPSET, Body, functions
from mlpdeploy.engine.onnx.program import ORIGIN, program
from mlpdeploy.engine.onnx.simplify import simplify
from mlpdeploy.engine.onnx.tidy import tidy
from mlpdeploy.errors import NetworkError
from mlpdeploy.graph import custom_ops
from mlpdeploy.graph.operation import GELUS
from mlpdeploy.graph.precision.typed import Typed
from mlpdeploy.graph.tracing.place import network_of
from mlpdeploy.graph.tracing.quiet import quiet

BATCH = "batch"
"""Name of the symbolic first dimension in the ONNX file."""


@dataclass(frozen=True)
class Emitted:
    """The ONNX model (custom operations as local functions of domain `mlpdeploy`) and the graph it came from.

    Nodes are named `<module path>/<operation>`. `fp32_nodes`: those that the precision plan keeps in FP32;
    `quantised_nodes`: those that stem from what it gives 8-bit operands.
    """

    model: onnx.ModelProto
    typed: Typed
    fp32_nodes: frozenset[str] = frozenset()
    quantised_nodes: frozenset[str] = frozenset()


def emit(typed: Typed) -> Emitted:
    """Export `typed` to ONNX with a dynamic batch, or the one it is fixed at, checked by onnx's own checker.

    Raises NetworkError, naming the operation and the module of the user's network, where ONNX has no such operation.
    """
    exported = _exported(typed)
    transpose_codes(exported)
    keep_relu(exported)
    opset = pack_blocks(exported)
    fp32, quantised = tidy(exported, BATCH, typed.fp32, typed.quantised)
    proto = ir.serde.serialize_model(exported)
    called = {node.op_type for node in proto.graph.node if node.domain == custom_ops.DOMAIN}
    proto.functions.extend(functions(called, opset))
    if any(node.domain == fp4.DOMAIN for node in proto.graph.node):
        proto.functions.append(fp4.function())
    onnx.checker.check_model(proto)
    return Emitted(proto, typed, fp32, quantised)


def _exported(typed: Typed) -> ir.Model:
    source = program(typed.module, _has_form)
    with torch.no_grad(), quiet():
        try:
            # What torch.onnx.export does with a program, but for reading all forms of the exporter again each time.
            model = exported_program_to_ir(source, registry=_registry())
            convert_version(model, OPSET, fallback=True)
            simplify(model)
        except Exception as error:  # export, the exporter and its optimiser raise many types; each becomes one line
            raise NetworkError(_unsupported(typed.module, source, error)) from error
    # An output that is returned twice has the name of the last, an input that is returned one of the exporter's.
    graph = model.graph
    for value, spec in (*zip(graph.inputs, typed.inputs, strict=True), *zip(graph.outputs, typed.outputs, strict=True)):
        value.name = spec.name
    return model


def _unsupported(module: fx.GraphModule, source: ExportedProgram, error: BaseException) -> str:
    """Which operation of which module ONNX has no form for."""
    chain: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(str(cause))
        cause = cause.__cause__
    known = {node.name: node for node in module.graph.nodes}
    # The exporter names the operation that it could not write, which may be a part of what the network calls.
    named = {match.groups() for text in chain if (match := _NODE.search(text))}
    whole = [node for node in source.graph.nodes if (node.name, f"torch.ops.{node.target}") in named]
    parts = (
        node for node in _parts(module) if any(repr(node.target) in text or str(node.target) in text for text in chain)
    )
    unknown = (node for node in source.graph.nodes if _is_unknown(node))
    for node in (*whole, *parts, *unknown):
        origin = known.get((node.meta.get("custom") or {}).get(ORIGIN, ""))
        if origin is not None:
            where = network_of(origin) or "the network itself"
            line = (origin.meta.get("stack_trace") or "").strip().splitlines()[-2:-1]
            place = f", {_PATH.sub('', line[0].strip())}" if line else ""
            return f"{origin.target} has no ONNX form: module '{where}'{place}; replace it there"
    return f"the network cannot be written as ONNX: {one_line(chain[-1])}"


def _parts(module: fx.GraphModule) -> list[fx.Node]:
    """What the exporter takes the operations of a graph apart into; none where that fails too."""
    try:
        return list(program(module, lambda _: False).run_decompositions().graph.nodes)
    except Exception:  # torch's own decompositions raise many types
        return []


def _has_form(target: Any) -> bool:
    """Whether the exporter or we write an operation as ONNX as it is, without taking it apart."""
    return not isinstance(target, torch._ops.OpOverload) or _registry().is_registered(target)


def _is_unknown(node: fx.Node) -> bool:
    """Whether neither the exporter nor we have a form for an operation, nor for its parts."""
    target: Any = node.target
    return not _has_form(target) and not torch._C._dispatch_has_kernel_for_dispatch_key(
        target.name(), "CompositeImplicitAutograd"
    )


@cache
def _registry() -> ONNXRegistry:
    """The exporter's forms and ours."""
    registry = ONNXRegistry.from_torchlib(opset_version=OPSET)
    for target, form in _TRANSLATIONS.items():
        registry.register_op(target, form)
    return registry


def _segment_grouped_projection(x: Any, weight: Any, segments: int) -> Any:
    sizes, segments = [1, *map(int, x.shape[1:])], int(segments)
    body = Body.of(sizes, segments)
    matrix = weight if body.trailing else opset20.Transpose(weight, perm=[1, 0])
    attributes = body.attributes_of(sizes, segments, int(weight.shape[0]) // segments)
    return _SEGMENT_OPS[body.name](x, matrix, **attributes)


def _with_epilogue(
    x: Any,
    weight: Any,
    segments: int,
    bias: Any = None,
    gelu: str | None = None,
    scale: Any = None,
    accumulate: Any = None,
) -> Any:
    result = _segment_grouped_projection(x, weight, segments)
    if bias is not None:
        result = opset20.Add(result, bias)
    if gelu is not None:
        result = opset20.Gelu(result, approximate=GELUS[gelu])
    if accumulate is None:
        return result
    shape: Any = opset20.Constant(value_ints=[-1, *map(int, accumulate.shape[1:])])
    seen = opset20.Reshape(result, shape)
    return opset20.Add(seen if scale is None else opset20.Mul(seen, scale), accumulate)


def _cast(x: Any, dtype: int, *_: Any) -> Any:
    return opset20.Cast(x, to=dtype)


def _quantise(x: Any, scale: Any, dtype: int) -> Any:
    zero: Any = opset20.Constant(value=_ZERO[int(dtype)])
    return opset20.QuantizeLinear(x, scale, zero)


def _dequantise(codes: Any, scale: Any, axis: int) -> Any:
    if len(scale.shape):
        return opset20.DequantizeLinear(codes, scale, axis=int(axis))
    # ONNX Runtime moves it behind a Reshape with a QuantizeLinear in front, which without a zero point is unsigned.
    zero: Any = opset20.Constant(value=_ZERO[int(codes.dtype)])
    return opset20.DequantizeLinear(codes, scale, zero)


def _dequantise_blocks(codes: Any, scales: Any, axis: int, block: int) -> Any:
    return opset20.DequantizeLinear(codes, scales, axis=int(axis))  # `pack_blocks` says how large they are


def _segment_schema(body: Body) -> onnx.defs.OpSchema:
    kinds = [f"tensor({name})" for name in ("float", "float16", "bfloat16", "double")]
    parameter, attribute = onnx.defs.OpSchema.FormalParameter, onnx.defs.OpSchema.Attribute
    return onnx.defs.OpSchema(
        body.name,
        custom_ops.DOMAIN,
        1,
        inputs=[parameter(name, "T") for name in ("X", "W")],
        outputs=[parameter("Y", "T")],
        type_constraints=[("T", kinds, "")],
        attributes=[attribute(name, onnx.defs.OpSchema.AttrType.INTS, "", required=True) for name in body.attributes],
    )


_PATH = re.compile(r'(?<=")[^"]*[/\\](?=[^"/\\]*")')
"""The folders of a file in a line of a stack trace."""

_NODE = re.compile(r"translating node %(\w+) : .*?call_function\[target=([\w.]+)\]")
"""The node that the exporter could not write, in its message: name and operation."""

_ZERO = {
    int(kind): onnx.helper.make_tensor("zero", kind, [], [0])
    for kind in (onnx.TensorProto.INT8, onnx.TensorProto.FLOAT8E4M3FN)
}
"""The zero point, which says what codes are, by its type."""

_OPSET = onnxscript.values.Opset(custom_ops.DOMAIN, 1)
_SEGMENT_OPS = {name: onnxscript.values.Op(_OPSET, name, _segment_schema(body)) for name, body in BODIES.items()}
_TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    custom_ops.SEGMENT_GROUPED_PROJECTION: _segment_grouped_projection,
    custom_ops.WITH_EPILOGUE: _with_epilogue,
    custom_ops.QUANTISE: _quantise,
    custom_ops.DEQUANTISE: _dequantise,
    custom_ops.DEQUANTISE_BLOCKS: _dequantise_blocks,
    custom_ops.CODED_FP4: fp4.coded,
    torch.ops.aten.to.dtype: _cast,
    **attention.TRANSLATIONS,
    **elementary.TRANSLATIONS,
    **lacking.TRANSLATIONS,
    **norms.TRANSLATIONS,
    **token_mlps.TRANSLATIONS,
}
