"""Layer information in the form of `trtexec --exportLayerInfo`, which NVIDIA's report tools read.

TensorRT's own inspector tells it of an engine that is loaded on a GPU. Of a TensorRT-RTX engine, which is built without
one, it is made of what the engine says of itself: the same fields, kinds and names in the engine's words.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlpdeploy.engine.backend import LAYERS
from mlpdeploy.engine.backends.tensorrt import _contexts
from mlpdeploy.engine.backends.tensorrt._programme import Programme, Statement, Tensor
from mlpdeploy.engine.features import STRIPPED

_FORMATS = {
    "float": "Float", "half": "Half", "bf16": "BFloat16", "fp8_e4m3": "FP8", "fp4_e2m1": "FP4", "int8": "Int8",
    "int4": "Int4", "int32": "Int32", "int64": "Int64", "bool": "Bool",
}  # fmt: skip
"""Formats as the inspector calls those of compiled kernels, by the engine's names of dtypes."""
_SEPARATOR = "\x1e"
"""What the inspector writes between the nodes of one layer."""


def write(
    flavour: str, engine: Path, programmes: Mapping[int, Programme], ports: Sequence[str], features: Sequence[str]
) -> None:
    """Write the layers of an engine beside it; nothing where it does not tell and cannot be loaded."""
    if programmes:
        told = layer_information(programmes, ports)
    elif flavour == "tensorrt":
        with _contexts.deserialised(
            flavour, engine, {"features": [one for one in features if one != STRIPPED]}
        ) as loaded:
            told = _contexts.inspected(loaded)
    else:
        return
    (engine.parent / LAYERS).write_text(json.dumps(told, indent=1), encoding="utf-8")


def layer_information(programmes: Mapping[int, Programme], ports: Sequence[str]) -> dict[str, Any]:
    """What the inspector tells of an engine, of its programmes; `ports` are the names of its inputs and outputs.

    Names of what belongs to a further optimisation profile end with its number.
    """
    layers: list[dict[str, Any]] = []
    bindings: list[str] = []
    for profile, programme in programmes.items():
        suffix = f" [profile {profile}]" if profile else ""
        layers += _layers(programme, ports, suffix)
        bindings += [_named(port, suffix) for port in ports]
    return {"Layers": layers, "Bindings": bindings}


def _layers(programme: Programme, ports: Sequence[str], suffix: str) -> list[dict[str, Any]]:
    bound = _bound(programme, ports, suffix)
    tensors = {name: _tensor(tensor, programme.tensors, bound, suffix) for name, tensor in programme.tensors.items()}
    seen: Counter[str] = Counter()
    layers = []
    for statement in programme.statements:
        seen[statement.name] += 1
        name = statement.name if seen[statement.name] == 1 else f"{statement.name}_{seen[statement.name]}"
        layers.append({"Name": _named(name, suffix), **_layer(statement, programme.tensors, tensors)})
    return layers


def _layer(statement: Statement, known: Mapping[str, Tensor], told: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    reads = [name for name in statement.reads if name in known and not known[name].host]
    constants = [name for name in reads if known[name].constant]
    layer = {
        "LayerType": statement.kind,
        "Inputs": [told[name] for name in reads if name not in constants],
        "Outputs": [told[name] for name in statement.writes if name in known],
        "Constants": [told[name] for name in constants],
        "TacticName": statement.kernel,
        "StreamId": statement.stream,
        "Metadata": _SEPARATOR.join(f"[ONNX Layer: {node}]" for node in statement.nodes),
    }
    if constants:
        largest = max((known[name] for name in constants), key=_count)
        layer["Weights"] = {"Type": _format(largest), "Count": _count(largest)}
    return layer


def _named(name: str, suffix: str) -> str:
    """A name as that of a profile: the engine marks some by itself, and uses others in several profiles."""
    return name if suffix in name else name + suffix


def _bound(programme: Programme, ports: Sequence[str], suffix: str) -> dict[str, str]:
    """The engine's inputs and outputs by what their tensors are called: after them, or an output by its place."""
    ports = [_named(port, suffix) for port in ports]
    found = {name: port for port in ports if (name := f"{port}.1") in programme.tensors}
    left = [name for name in programme.outputs if name not in found]
    unnamed = [port for port in ports if port not in found.values()]
    return found | dict(zip(left, unnamed, strict=True)) if len(left) == len(unnamed) else found


def _root(tensors: Mapping[str, Tensor], name: str) -> str:
    """What a tensor is a view of, or itself."""
    seen = {name}
    while name in tensors and (base := tensors[name].base) is not None and base not in seen:
        seen.add(name := base)
    return name


def _tensor(tensor: Tensor, known: Mapping[str, Tensor], bound: Mapping[str, str], suffix: str) -> dict[str, Any]:
    root = _root(known, tensor.name)
    return {
        "Name": _named(bound.get(root, root), suffix),
        "Dimensions": list(tensor.dimensions),
        "Format/Datatype": _format(tensor),
    }


def _format(tensor: Tensor) -> str:
    return _FORMATS.get(tensor.dtype, tensor.dtype)


def _count(tensor: Tensor) -> int:
    return math.prod(tensor.dimensions)
