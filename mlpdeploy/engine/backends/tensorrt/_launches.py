"""What a TensorRT-RTX engine launches, counted."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from mlpdeploy.engine.backend import ITSELF, module_of
from mlpdeploy.engine.backends.tensorrt._programme import Programme, Statement, Tensor
from mlpdeploy.engine.backends.tensorrt.parsed import origins

_MADE = re.compile(r"__myl_(\w+)")
"""The name of a kernel says its operations one after the other, in four letters each."""
_OPERATION = re.compile(r"[A-Z][a-z0-9]*")
_MOVES = {"Conc", "Gath", "Move", "Repl", "Resh", "Slic", "Tran"}
"""Operations that compute nothing: what consists of them is a copy. A cast rounds."""
_REDUCTIONS = {"Cums", "Etc", "Gnor", "Inor", "Maxr", "Mean", "Minr", "Prod", "Sum", "Topk"}
"""Operations that take many numbers for one; `Etc` stands for those of a long kernel that its name leaves out."""
_NORM = "Normalization"
"""What the ONNX operations of norms end in, and the names of nodes that take the place of one begin with."""
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
_BYTES = {
    "float": 4,
    "half": 2,
    "bf16": 2,
    "int8": 1,
    "fp8_e4m3": 1,
    "fp4_e2m1": 0.5,
    "bool": 1,
    "int32": 4,
    "int64": 8,
}


@dataclass(frozen=True)
class Launches:
    """One inference: launches in all, by kind as the engine names it, and the bytes of CUDA source that it carries.

    `fully_connected` and `corrltn` are products and convolutions, `runtime_fusion` a product with what follows it,
    `function` a kernel compiled for this network: pointwise operations, reductions, what moves data. Of these `copies`
    read something and compute nothing, `normalisations` compute norms or parts of them, with what is around them, and
    `pointwise` is what does neither and reduces nothing; `transposes`, of all of these, change the order of axes. What
    only writes zeros is none of them. `bytes_moved` is what all launches read and write, where the engine is for one
    batch size; None where it is for several. `where` counts copies and transposes by the module of the first node that
    a launch computes, with `*` for numbers in its path.
    """

    total: int
    by_kind: Mapping[str, int]
    source_bytes: int
    copies: int = 0
    normalisations: int = 0
    pointwise: int = 0
    transposes: int = 0
    bytes_moved: int | None = None
    where: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def launches(programme: Programme) -> Launches:
    """What one inference launches."""
    statements = programme.statements
    kinds = [one.kind for one in statements]
    made = [_what(one, programme) for one in statements]
    moving = {
        "copies": [one for one, what in zip(statements, made, strict=True) if what == "copies"],
        "transposes": [one for one in statements if "Tran" in _operations(one)],
    }
    return Launches(
        total=len(statements),
        by_kind={kind: kinds.count(kind) for kind in sorted(set(kinds))},
        source_bytes=programme.source_bytes,
        copies=len(moving["copies"]),
        normalisations=made.count("normalisations"),
        pointwise=made.count("pointwise"),
        transposes=len(moving["transposes"]),
        bytes_moved=_bytes_moved(programme),
        where={what: dict(Counter(map(_module, some)).most_common()) for what, some in moving.items() if some},
    )


def _module(statement: Statement) -> str:
    """The path of the module that a launch begins in, the same for all blocks of a kind."""
    modules = (module_of(name) for node in statement.nodes for name in origins(f"[ONNX Layer: {node}]"))
    return _NUMBER.sub("*", next((module for module in modules if module != ITSELF), ITSELF))


def _what(statement: Statement, programme: Programme) -> str | None:
    """What a kernel that was made for this network is counted as; None of one that is none of them."""
    done, read = {*_operations(statement)}, [programme.tensors.get(name) for name in statement.reads]
    if not done or not any(one is None or not one.host for one in read):
        return None
    if done <= _MOVES:
        return "copies"
    if any(_NORM in node for node in statement.nodes):
        return "normalisations"
    return None if done & _REDUCTIONS else "pointwise"


def _operations(statement: Statement) -> list[str]:
    """What a kernel does, from its name; nothing of one that was not made for this network."""
    found = _MADE.match(statement.name) if statement.kind == "function" else None
    return [] if found is None else _OPERATION.findall(found[1])


def _bytes_moved(programme: Programme) -> int | None:
    names = [name for one in programme.statements for name in (*one.reads, *one.writes)]
    found = [_size(programme.tensors.get(name)) for name in names]
    return None if None in found or not found else sum(size for size in found if size is not None)


def _size(tensor: Tensor | None) -> int | None:
    """The bytes of a tensor; None where they depend on the batch."""
    if tensor is None or -1 in tensor.dimensions or tensor.dtype not in _BYTES:
        return None
    return int(_BYTES[tensor.dtype] * math.prod(tensor.dimensions))
