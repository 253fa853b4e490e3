"""What a TensorRT-RTX engine launches, read from the engine: no GPU is needed.

Such an engine holds its programme as text, a launch a line, a tensor a line, and the CUDA source of the kernels that
are compiled where it runs, once for nearly every launch of one. The format is not documented: what is not found is not
told.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

_PROGRAMME = re.compile(rb"header \{\n(.*?)\n\}.*?\nmain \{\n(.*?)\n\}", re.DOTALL)
_FUSION = b"accelerators={*}"
"""In the header of what a `runtime_fusion` falls back to where it cannot be fused: a programme that is not launched."""
_LAUNCH = re.compile(rb"^  (\w+)=\{ (.*\bstream=\d.*)$", re.MULTILINE)
_LAYER = re.compile(rb"\[ONNX Layer: ([^\]]+)\]")
_SOURCE = re.compile(rb"(?:#undef|#ifdef|#include|#define)[\t\n\r -~]{20000,}")
_NONE = {b"shape_call", b"signal", b"wait"}
"""Statements that launch nothing: what the CPU computes, and what one stream says to another."""

_KERNEL = re.compile(rb"name=__myl_(\w+)")
"""The name of a kernel says its operations one after the other, in four letters each."""
_OPERATION = re.compile(rb"[A-Z][a-z0-9]*")
_MOVES = {b"Cast", b"Conc", b"Gath", b"Move", b"Repl", b"Resh", b"Slic", b"Tran"}
"""Operations that compute nothing: what consists of them is a copy."""

_TENSOR = re.compile(rb"^  (?:sub_)?tensor=\{ (.*) \}$", re.MULTILINE)
_NAME = re.compile(rb' name="([^"]*)"')
_DIMS, _TYPE = re.compile(rb"dims=\{ ([^}]*) \}"), re.compile(rb" type=(\w+)")
_OPERANDS = re.compile(rb"\b(?:input_args|output_args|input|output)=\{([^}]*)\}")
_BYTES = {b"float": 4, b"half": 2, b"bf16": 2, b"int8": 1, b"fp8_e4m3": 1, b"bool": 1, b"int32": 4, b"int64": 8}


@dataclass(frozen=True)
class Launches:
    """One inference: launches in all, by kind as the engine names it, and the bytes of CUDA source that it carries.

    `fully_connected` and `corrltn` are products and convolutions, `runtime_fusion` a product with what follows it,
    `function` a kernel compiled for this network: pointwise operations, reductions, what moves data. Of these `copies`
    compute nothing, and `transposes` (some of which compute as well) change the order of axes. `bytes_moved` is what
    all launches read and write, where the engine is for one batch size; None where it is for several.
    """

    total: int
    by_kind: Mapping[str, int]
    source_bytes: int
    copies: int = 0
    transposes: int = 0
    bytes_moved: int | None = None


def launches(engine: bytes) -> Launches | None:
    """What one inference with the engine launches; None where it does not tell."""
    found = [*_statements(engine)]
    if not found:
        return None
    kinds = [kind.decode() for kind, _ in found]
    kernels = [_operations(text) for kind, text in found if kind == b"function"]
    return Launches(
        total=len(found),
        by_kind={kind: kinds.count(kind) for kind in sorted(set(kinds))},
        source_bytes=sum(len(text.group()) for text in _SOURCE.finditer(engine)),
        copies=sum(bool(kernel) and set(kernel) <= _MOVES for kernel in kernels),
        transposes=sum(b"Tran" in kernel for kernel in kernels),
        bytes_moved=_bytes_moved(engine, (text for _, text in found)),
    )


def layers(engine: bytes) -> frozenset[str]:
    """The nodes of its ONNX file that the launches of an engine name."""
    return frozenset(name.decode(errors="replace") for name in _LAYER.findall(engine))


def _statements(engine: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The launches of an engine: kind and text of each."""
    for header, main in _PROGRAMME.findall(engine):
        if _FUSION not in header:
            yield from ((kind, text) for kind, text in _LAUNCH.findall(main) if kind not in _NONE)


def _operations(text: bytes) -> list[bytes]:
    """What a kernel does, from its name; nothing of one that was not made for this network."""
    found = _KERNEL.search(text)
    return [] if found is None else _OPERATION.findall(found[1])


def _bytes_moved(engine: bytes, statements: Iterable[bytes]) -> int | None:
    sizes = {name: size for name, size in map(_sized, _TENSOR.findall(engine)) if size is not None}
    names = [
        name for text in statements for side in _OPERANDS.findall(text) for name in re.findall(rb'"([^"]*)"', side)
    ]
    found = [sizes.get(name) for name in names]
    return None if None in found or not found else sum(size for size in found if size is not None)


def _sized(tensor: bytes) -> tuple[bytes, int | None]:
    """The name of a tensor and its bytes; None where they depend on the batch."""
    name, dims, kind = _NAME.search(tensor), _DIMS.search(tensor), _TYPE.search(tensor)
    each = None if kind is None else _BYTES.get(kind[1])
    if name is None or dims is None or each is None or b'"' in dims[1]:
        return (b"" if name is None else name[1]), None
    return name[1], each * math.prod(map(int, dims[1].split()))
