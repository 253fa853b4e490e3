"""What a TensorRT-RTX engine launches, read from the engine: no GPU is needed.

Such an engine holds its programme as text, a launch a line, and the CUDA source of the kernels that are compiled where
it runs, once for nearly every launch of one. The format is not documented: what is not found is not told.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

_PROGRAMME = re.compile(rb"header \{\n(.*?)\n\}.*?\nmain \{\n(.*?)\n\}", re.DOTALL)
_FUSION = b"accelerators={*}"
"""In the header of what a `runtime_fusion` falls back to where it cannot be fused: a programme that is not launched."""
_LAUNCH = re.compile(rb"^  (\w+)=\{ .*\bstream=\d", re.MULTILINE)
_LAYER = re.compile(rb"\[ONNX Layer: ([^\]]+)\]")
_SOURCE = re.compile(rb"(?:#undef|#ifdef|#include|#define)[\t\n\r -~]{20000,}")
_NONE = {"shape_call", "signal", "wait"}
"""Statements that launch nothing: what the CPU computes, and what one stream says to another."""


@dataclass(frozen=True)
class Launches:
    """One inference: launches in all, by kind as the engine names it, and the bytes of CUDA source that it carries.

    `fully_connected` and `corrltn` are products and convolutions, `runtime_fusion` a product with what follows it,
    `function` a kernel compiled for this network: pointwise operations, reductions, what moves data.
    """

    total: int
    by_kind: Mapping[str, int]
    source_bytes: int


def launches(engine: bytes) -> Launches | None:
    """What one inference with the engine launches; None where it does not tell."""
    kinds: Counter[str] = Counter()
    for header, main in _PROGRAMME.findall(engine):
        if _FUSION not in header:
            kinds.update(kind.decode() for kind in _LAUNCH.findall(main))
    for kind in _NONE:
        kinds.pop(kind, None)
    if not kinds:
        return None
    source = sum(len(text.group()) for text in _SOURCE.finditer(engine))
    return Launches(kinds.total(), dict(sorted(kinds.items())), source)


def layers(engine: bytes) -> frozenset[str]:
    """The nodes of its ONNX file that the launches of an engine name."""
    return frozenset(name.decode(errors="replace") for name in _LAYER.findall(engine))
