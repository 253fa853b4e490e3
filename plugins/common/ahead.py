"""A kernel compiled ahead of time, for any GPU, without one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .configurations import POINTERS, Config

WARP = 32


@dataclass(frozen=True)
class Compiled:
    """A compiled kernel: its entry point, its PTX and cubin, threads of a block, and bytes of dynamic shared memory.

    The entry's parameters are the pointers and numbers that the kernel takes and that are no constants, in their order
    and nothing else.
    """

    entry: str
    ptx: str
    cubin: bytes
    threads: int
    shared: int


def compile_ahead(
    kernel: Any, precision: str, constants: Mapping[str, Any], config: Config, sm: int, cuda: str | None = None
) -> Compiled:
    """Compile for compute capability `sm` (90 for 9.0). All pointers must be aligned to 16 bytes when it runs.

    `constants`: the kernel's compile-time arguments, None for pointers that it goes without; `batch` is a number of 32
    bits. `cuda` is the version of CUDA that the driver which is to read the PTX has; it may be older than this Triton.
    """
    pointer, types = POINTERS[precision], {"batch": "i32", **dict.fromkeys(constants, "constexpr")}
    signature = {name: types.get(name, pointer) for name in kernel.arg_names}
    aligned = {(index,): [["tt.divisibility", 16]] for index, kind in enumerate(signature.values()) if kind == pointer}
    options = {"num_warps": config.warps, "num_stages": config.stages}
    source, target = ASTSource(kernel, signature, dict(constants), aligned), GPUTarget("cuda", sm, WARP)
    made = triton.compile(source, target=target, options=options)
    if cuda is not None and _version(made.asm["ptx"]) > ptx_version(cuda):
        made = triton.compile(source, target=target, options=options | {"ptx_version": ptx_version(cuda)})
    metadata = made.metadata
    if getattr(metadata, "global_scratch_size", 0) or getattr(metadata, "profile_scratch_size", 0):
        raise ValueError("the compiled kernel wants scratch memory, which only Triton's own launcher gives it")
    arguments = sum(kind != "constexpr" for kind in signature.values())
    ptx = without_scratch(made.asm["ptx"], arguments)
    return Compiled(metadata.name, ptx, made.asm["cubin"], metadata.num_warps * WARP, metadata.shared)


def ptx_version(cuda: str) -> int:
    """The newest PTX that a driver for this version of CUDA reads: 85 is 8.5 (PTX ISA, release notes)."""
    major, minor = (int(part) for part in cuda.split("."))
    return 10 * (major - 4) + minor - (major == 12 and minor >= 6)


def _version(ptx: str) -> int:
    found = re.search(r"^\.version (\d+)\.(\d+)", ptx, re.MULTILINE)
    return 10 * int(found[1]) + int(found[2]) if found else 0


def without_scratch(ptx: str, arguments: int) -> str:
    """The PTX whose entry has its first `arguments` parameters only.

    Triton appends pointers to scratch memory, which its own launcher fills. Another launcher passes what the kernel
    was written with, and the driver would read beyond its list. Raises ValueError where the code reads one of them.
    """
    head, opened, rest = ptx.partition("(")
    while opened and ".entry" not in head:
        more, opened, rest = rest.partition("(")
        head = f"{head}({more}"
    listed, closed, body = rest.partition("\n)")
    parameters = [line.rstrip(",") for line in listed.strip("\n").splitlines() if line.strip()]
    if not (opened and closed) or len(parameters) < arguments:
        raise ValueError("the PTX has no entry with that many parameters")
    for parameter in parameters[arguments:]:
        name = re.search(r"(\w+)$", parameter)
        if name is None or re.search(rf"\b{name[1]}\b", body):
            raise ValueError(f"the code reads a parameter that its launcher will not pass: {parameter.strip()}")
    kept = ",\n".join(parameters[:arguments])
    return f"{head}(\n{kept}{closed}{body}"
