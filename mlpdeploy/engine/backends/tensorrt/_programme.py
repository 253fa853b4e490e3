"""The programme of a TensorRT-RTX engine, read from the engine: no GPU is needed.

Such an engine holds its programme as text, a launch a line and a tensor a line, and the CUDA source of the kernels that
are compiled where it runs, once for nearly every launch of one. The format is not documented: what is not found is not
told.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_PROGRAMME = re.compile(rb"header \{\n(.*?)\n\}(.*?)\nmain \{\n(.*?)\n\}", re.DOTALL)
_FUSION = b"accelerators={*}"
"""In the header of what a `runtime_fusion` falls back to where it cannot be fused: a programme that is not launched."""
_LAUNCH = re.compile(rb"^  (\w+)=\{ (.*\bstream=(\d+).*)$", re.MULTILINE)
_LAYER = re.compile(rb"\[ONNX Layer: ([^\]]+)\]")
_SOURCE = re.compile(rb"(?:#undef|#ifdef|#include|#define)[\t\n\r -~]{20000,}")
_NONE = {b"shape_call", b"signal", b"wait"}
"""Statements that launch nothing: what the CPU computes, and what one stream says to another."""
_KERNEL = re.compile(rb"\bname=(?:\"([^\"]*)\"|(\w+))")
_FULL_NAME = re.compile(rb"\bfqn=(\w+)")
_READ = re.compile(rb"\b(?:input_args|input)=\{([^}]*)\}")
_PROFILE = re.compile(rb"^  inputs=\{[^}]* \[profile (\d+)\]", re.MULTILINE)
"""What the engine's inputs are called in further optimisation profiles; in the first they have their own names."""
_OUTPUTS = re.compile(rb"^  outputs=\{([^}]*)\}", re.MULTILINE)
_WRITTEN = re.compile(rb"\b(?:output_args|output)=\{([^}]*)\}")
_QUOTED = re.compile(rb'"([^"]*)"')

_TENSOR = re.compile(rb"^  (?:sub_)?tensor=\{ (.*) \}$", re.MULTILINE)
_NAME = re.compile(rb' name="([^"]*)"')
_BASE = re.compile(rb'^base="([^"]*)"')
_DIMS, _TYPE = re.compile(rb"dims=\{ ([^}]*) \}"), re.compile(rb" type=(\w+)")
_HOST = b"mem_prop=100 "
_DIMENSION = re.compile(r'"[^"]*"|\S+')


@dataclass(frozen=True)
class Tensor:
    """What a launch reads or writes; a dimension that depends on the batch is -1. `base` is what it is a view of.

    `host` are numbers that the CPU computes, such as a size that depends on the batch.
    """

    name: str
    dimensions: tuple[int, ...]
    dtype: str
    constant: bool
    host: bool
    base: str | None


@dataclass(frozen=True)
class Statement:
    """One launch: its kind and name in the engine's own words, tensors by name, and the ONNX nodes that it computes."""

    kind: str
    name: str
    kernel: str
    stream: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Programme:
    """What one inference with an engine launches, in order; `source_bytes` of CUDA source that the engine carries.

    `outputs` are the tensors that it ends with.
    """

    statements: tuple[Statement, ...]
    tensors: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    source_bytes: int


def read(engine: bytes) -> dict[int, Programme]:
    """The programme of each optimisation profile of an engine, by its number; none where it does not tell."""
    source_bytes = sum(len(text.group()) for text in _SOURCE.finditer(engine))
    parts: dict[int, list[tuple[bytes, bytes, bytes]]] = {}
    for part in _PROGRAMME.findall(engine):
        if _FUSION not in part[0]:
            profile = _PROFILE.search(part[0])
            parts.setdefault(0 if profile is None else int(profile[1]), []).append(part)
    made = {profile: _programme(launched, source_bytes) for profile, launched in sorted(parts.items())}
    return {profile: one for profile, one in made.items() if one is not None}


def _programme(launched: Sequence[tuple[bytes, bytes, bytes]], source_bytes: int) -> Programme | None:
    found = (one for _, _, main in launched for one in _LAUNCH.findall(main) if one[0] not in _NONE)
    statements = tuple(_statement(*one) for one in found)
    if not statements:
        return None
    described = (_tensor(text) for _, texts, _ in launched for text in _TENSOR.findall(texts))
    tensors = {tensor.name: tensor for tensor in described if tensor is not None}
    return Programme(statements, tensors, _quoted(_OUTPUTS, launched[-1][0]), source_bytes)


def _statement(kind: bytes, text: bytes, stream: bytes) -> Statement:
    name, full = _KERNEL.search(text), _FULL_NAME.search(text)
    named = "" if name is None else _text(name[1] or name[2] or b"")
    return Statement(
        kind=_text(kind),
        name=named,
        kernel=named if full is None else _text(full[1]),
        stream=int(stream),
        reads=_quoted(_READ, text),
        writes=_quoted(_WRITTEN, text),
        nodes=tuple(dict.fromkeys(map(_text, _LAYER.findall(text)))),
    )


def _quoted(side: re.Pattern[bytes], text: bytes) -> tuple[str, ...]:
    return tuple(_text(name) for found in side.findall(text) for name in _QUOTED.findall(found))


def _tensor(text: bytes) -> Tensor | None:
    name, dims, kind, base = (of.search(text) for of in (_NAME, _DIMS, _TYPE, _BASE))
    if name is None or dims is None or kind is None:
        return None
    sizes = tuple(-1 if one.startswith('"') else int(one) for one in _DIMENSION.findall(_text(dims[1])))
    return Tensor(
        name=_text(name[1]),
        dimensions=sizes,
        dtype=_text(kind[1]),
        constant=b"const_payload_size=" in text,
        host=_HOST in text,
        base=None if base is None else _text(base[1]),
    )


def _text(of: bytes) -> str:
    return of.decode(errors="replace")
