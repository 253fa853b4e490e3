"""A model's config.pbtxt: the part of Triton's ModelConfig that is written here, in protobuf's own text format.

A configuration that somebody has changed is read too: fields that are not written here are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.signature import Port, Signature
from mlpdeploy.errors import InputError
from mlpdeploy.system.files import read_text

CONFIG, LABELS, VERSION = "config.pbtxt", "labels.txt", "tensorrt_version"
PLATFORMS = {
    "plan": ("platform", "tensorrt_plan"),
    "onnx": ("platform", "onnxruntime_onnx"),
    "python": ("backend", "python"),
}
FILES = {"plan": "model.plan", "onnx": "model.onnx", "python": "model.py"}
"""What Triton looks for in the folder of a version."""

_TYPES = (
    "INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64",
    "STRING", "BF16",
)  # fmt: skip
_DTYPES = {"float16": "FP16", "float32": "FP32", "float64": "FP64", "bfloat16": "BF16"}
_ENUMS = {"DataType": [f"TYPE_{name}" for name in _TYPES], "Kind": ["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"]}
_MESSAGES: dict[str, dict[str, str | list[str]]] = {
    "ModelConfig": {
        "name": "string", "platform": "string", "backend": "string", "max_batch_size": "int32", "input": ["Tensor"],
        "output": ["Tensor"], "dynamic_batching": "Batching", "instance_group": ["Instances"],
        "optimization": "Optimization", "default_model_filename": "string", "cc_model_filenames": ["File"],
        "parameters": ["Parameter"], "model_warmup": ["Warmup"],
    },
    "Tensor": {
        "name": "string", "data_type": "DataType", "dims": ["int64"], "reshape": "Reshape", "label_filename": "string",
    },
    "Reshape": {"shape": ["int64"]},
    "Batching": {"preferred_batch_size": ["int32"]},
    "Instances": {"count": "int32", "kind": "Kind", "profile": ["string"]},
    "Optimization": {"cuda": "Cuda"},
    "Cuda": {"graphs": "bool", "graph_spec": ["GraphSpec"]},
    "GraphSpec": {"batch_size": "int32", "input": ["GraphInput"]},
    "GraphInput": {"key": "string", "value": "Dims"},
    "Dims": {"dim": ["int64"]},
    "File": {"key": "string", "value": "string"},
    "Parameter": {"key": "string", "value": "Text"},
    "Text": {"string_value": "string"},
    "Warmup": {"name": "string", "batch_size": "uint32", "inputs": ["WarmupInput"]},
    "WarmupInput": {"key": "string", "value": "Data"},
    "Data": {"data_type": "DataType", "dims": ["int64"], "zero_data": "bool"},
}  # fmt: skip
"""Fields by message, of model_config.proto; a list is a repeated field, of entries with key and value where it maps."""


@dataclass(frozen=True)
class Served:
    """What a configuration is made of: an engine, and how it is to be served.

    `plans` are the files of TensorRT's plans by compute capability ("8.6"), where there are several.
    """

    name: str
    kind: str
    signature: Signature
    batch: Batch
    on_gpu: bool
    instances: int = 1
    labelled: str | None = None
    tensorrt: str | None = None
    plans: Mapping[str, str] | None = None


def text(served: Served) -> str:
    """The configuration of a model, as the text of its config.pbtxt."""
    from google.protobuf import text_format

    return str(text_format.MessageToString(_message("ModelConfig")(**_fields(served))))


def require_same(path: Path, served: Served) -> None:
    """Raises InputError where a model's configuration is not one that another version of `served` fits."""
    from google.protobuf import text_format

    try:
        found = text_format.Parse(read_text(path), _message("ModelConfig")(), allow_unknown_field=True)
    except (OSError, ValueError, text_format.ParseError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path} cannot be read ({reason}): give another --model-name") from error
    ours = _message("ModelConfig")(**_fields(served))
    for what, before, now in zip(_COMPARED, _compared(found, served), _compared(ours, served), strict=True):
        if before != now:
            then, here = ("none" if value in ("", None, {}) else value for value in (before, now))
            raise InputError(f"{path} has {what} {then}, and this engine {here}: give another --model-name")


_COMPARED = (
    "platform",
    "backend",
    "max_batch_size",
    "default_model_filename",
    "input",
    "output",
    "labels",
    "plans",
    VERSION,
)


def _compared(config: Any, served: Served) -> list[Any]:
    """What of a configuration each of its versions must fit, in the order of `_COMPARED`."""
    tensors = [
        ", ".join(f"{one.name} {_TYPES[one.data_type]} {[*one.dims]}" for one in side)
        for side in (config.input, config.output)
    ]
    labels = " ".join(one.name for one in config.output if one.label_filename and served.labelled)
    plans = {entry.key: entry.value for entry in config.cc_model_filenames}
    parameters = {entry.key: entry.value.string_value for entry in config.parameters}
    file = config.default_model_filename or FILES[served.kind]
    return [
        config.platform, config.backend, config.max_batch_size, file, *tensors, labels, plans, parameters.get(VERSION),
    ]  # fmt: skip


def _fields(served: Served) -> dict[str, Any]:
    field, platform = PLATFORMS[served.kind]
    batched, sizes = served.batch.min == 1, _sizes(served.batch)
    found: dict[str, Any] = {
        "name": served.name,
        field: platform,
        "max_batch_size": served.batch.max if batched else 0,
        "input": [_tensor(port, served) for port in served.signature.inputs],
        "output": [_tensor(port, served) for port in served.signature.outputs],
        "instance_group": [_instances(served)],
        "model_warmup": [_warmup(size, served) for size in sizes],
    }
    if batched and served.batch.max > 1:
        found["dynamic_batching"] = {"preferred_batch_size": [size for size in sizes if size > 1]}
    if served.kind == "plan":
        found["optimization"] = {"cuda": {"graphs": True, "graph_spec": [_graph(size, served) for size in sizes]}}
        found["parameters"] = [{"key": VERSION, "value": {"string_value": served.tensorrt}}]
        found["cc_model_filenames"] = [{"key": key, "value": file} for key, file in (served.plans or {}).items()]
    return found


def _sizes(batch: Batch) -> list[int]:
    """The batch sizes that an engine is tuned for, and the ends of what it takes."""
    return sorted({batch.min, batch.max, *(opt for _, opt, _ in batch.each)})


def _tensor(port: Port, served: Served) -> dict[str, Any]:
    """A port. Where its rows are single numbers and batches are the server's, clients see an axis of one."""
    found = {"name": port.name, "data_type": _type(port)}
    if port.name == served.labelled:
        found["label_filename"] = LABELS
    if served.batch.min == 1 and not port.shape:
        return found | {"dims": [1], "reshape": {"shape": []}}
    return found | {"dims": [*_leading(None, served.batch), *port.shape]}


def _leading(size: int | None, batch: Batch) -> Sequence[int]:
    """The batch axis among the dimensions of a tensor: none where the server adds it. Without a size it is any."""
    if batch.min == 1:
        return ()
    return (batch.max if batch.min == batch.max else -1,) if size is None else (size,)


def _type(port: Port) -> int:
    name = _DTYPES.get(port.dtype, port.dtype.upper())
    if name not in _TYPES:
        raise InputError(f"{port.name} is {port.dtype}, and Triton has no such tensors")
    return _TYPES.index(name)


def _instances(served: Served) -> dict[str, Any]:
    several = [str(place) for place in range(len(served.batch.profiles))] if served.kind == "plan" else []
    kind = _ENUMS["Kind"].index("KIND_GPU" if served.on_gpu else "KIND_CPU")
    return {"count": served.instances, "kind": kind, "profile": several}


def _warmup(size: int, served: Served) -> dict[str, Any]:
    def data(port: Port) -> dict[str, Any]:
        dims = [*_leading(size, served.batch), *port.shape] or [1]
        return {"key": port.name, "value": {"data_type": _type(port), "dims": dims, "zero_data": True}}

    rows = size if served.batch.min == 1 else 0
    return {"name": f"batch {size}", "batch_size": rows, "inputs": [data(port) for port in served.signature.inputs]}


def _graph(size: int, served: Served) -> dict[str, Any]:
    inputs = [
        {"key": port.name, "value": {"dim": [*_leading(size, served.batch), *port.shape]}}
        for port in served.signature.inputs
    ]
    return {"batch_size": size if served.batch.min == 1 else 0, "input": inputs}


@cache
def _pool() -> Any:
    """The messages of `_MESSAGES`. Text has no field numbers, so these are as they come."""
    from google.protobuf import descriptor_pb2, descriptor_pool

    file = descriptor_pb2.FileDescriptorProto(name="model_config", package="triton", syntax="proto3")
    for name, values in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            _add(message.field.add(name=field, number=number), kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


def _add(field: Any, kind: str | list[str]) -> None:
    (word,) = [kind] if isinstance(kind, str) else kind
    field.label = field.LABEL_OPTIONAL if isinstance(kind, str) else field.LABEL_REPEATED
    if word in _MESSAGES or word in _ENUMS:
        field.type_name, field.type = f".triton.{word}", field.TYPE_MESSAGE if word in _MESSAGES else field.TYPE_ENUM
    else:
        field.type = getattr(field, f"TYPE_{word.upper()}")


def _message(name: str) -> Any:
    from google.protobuf import message_factory

    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"triton.{name}"))
