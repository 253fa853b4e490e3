"""Which GPUs a TensorRT engine is built for."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import Any

from mlpdeploy.engine import nvidia
from mlpdeploy.engine.backends.tensorrt import _polygraphy
from mlpdeploy.engine.base import installed_version, one_line
from mlpdeploy.engine.nvidia import CURRENT
from mlpdeploy.errors import InputError, MachineLacks

TURING = 75
"""TensorRT's oldest GPUs: Volta's support ended with 10.5, by its release notes."""
MADE_FOR = ("cu12", "cu13")
"""NVIDIA's wheels for each version of CUDA: tensorrt-cu12, tensorrt-rtx-cu13 and so on."""


def unserved(flavour: str, gpu: nvidia.Gpu) -> str | None:
    """None where engines of a flavour run on a GPU with its driver, else one line: why not.

    TensorRT-RTX tells which GPUs it serves. A library that is in no wheel of NVIDIA's does not tell its CUDA.
    """
    made_for = [name.removeprefix("cu") for name in MADE_FOR if installed_version(f"{flavour}-{name}")]
    if made_for and (reason := nvidia.outdated(flavour, min(made_for), gpu)) is not None:
        return reason
    if flavour == "tensorrt":
        served, known = _number(gpu.capability) >= TURING, [f"sm{TURING} and later"]
    else:
        try:
            known = _known(importlib.import_module(flavour.replace("-", "_")))
        except (ImportError, OSError) as error:  # a library below it that is missing, or another one
            return f"{flavour} cannot be imported: {one_line(error)}"
        served = gpu.capability in known
    return (
        None if served else f"{flavour} runs on {', '.join(known)}, and this machine's {gpu.name} is {gpu.capability}"
    )


def _known(trt: Any) -> list[str]:
    """The compute capabilities that a TensorRT-RTX names, ascending: sm75 and so on."""
    members = (name.lower() for name in trt.ComputeCapability.__members__ if name.startswith("SM"))
    return sorted(members, key=_number)


SINCE = {"fp8": (89, "Ada, Hopper, Blackwell"), "nvfp4": (100, "Blackwell"), "int4": (80, "Ampere and later")}
"""The compute capability, times ten, from which on GPUs have a precision."""
AMPERE = 80
MULTIPLIED_SINCE_AMPERE = {"tensorrt": ("bf16", "tf32"), "tensorrt-rtx": ("bf16", "tf32", "fp32")}
"""What a flavour refuses to multiply for GPUs before that, which have FP16."""


def lacking(flavour: str, gpus: Collection[str], precision: str) -> str | None:
    """None where a flavour has a precision, and the GPUs that are asked for, or this machine's where it counts."""
    if precision == "nvfp4" and flavour == "tensorrt":
        return "backend tensorrt builds no NVFP4 here yet: ask for --backend tensorrt-rtx, or for fp8"
    wide = precision in MULTIPLIED_SINCE_AMPERE[flavour]
    oldest, called = (AMPERE, "Ampere and later") if wide else SINCE.get(precision, (0, ""))
    gpu = nvidia.probe() if CURRENT in gpus or (flavour == "tensorrt" and not gpus) else None
    asked = [gpu.capability] if isinstance(gpu, nvidia.Gpu) else [name for name in gpus if name != CURRENT]
    without = [name for name in asked if 0 < _number(name) < oldest]
    if not without:
        return None
    since = f"compute capability {oldest / 10} ({called})"
    names, precision = ", ".join(without), precision.upper()
    if wide:
        return f"{flavour} multiplies {precision} from {since} on, and not for {names}: ask for fp16 there"
    return f"{names} has no {precision}, which GPUs have from {since} on: ask for int8 there"


def compute_capabilities(flavour: str, gpus: Collection[str], precision: str) -> list[tuple[int, int]] | None:
    """("sm86", ...) as TensorRT-RTX's (major, minor) pairs; None for `current`, and where none are named: a
    precision is then for those that have it.

    Raises InputError for a GPU that TensorRT-RTX cannot build for, and, in the plain flavour, for any but this
    machine's own: it times kernels on the GPU that the engine will run on; MachineLacks for `current` without a GPU, or
    with one that it does not serve.
    """
    if precision in SINCE and not gpus and flavour != "tensorrt":
        gpus = [name for name in _known(_polygraphy.bind(flavour)) if _number(name) >= SINCE[precision][0]]
    if not gpus:
        return None
    gpu = nvidia.probe()
    here = gpu.capability if isinstance(gpu, nvidia.Gpu) else "none"
    if CURRENT in gpus:
        if len(gpus) > 1:
            raise InputError(f"--gpu {CURRENT} means this machine's GPU: it stands alone")
        if (reason := unserved(flavour, nvidia.require())) is not None:
            raise MachineLacks(f"--gpu {CURRENT} means this machine's GPU: {reason}")
        return None
    if flavour == "tensorrt":
        if set(gpus) != {here}:
            raise InputError(
                f"backend tensorrt builds for this machine's own GPU only ({here}), not for {', '.join(gpus)}; "
                "build there, or use --backend tensorrt-rtx"
            )
        return None
    known = _known(_polygraphy.bind(flavour))
    unknown = [name for name in gpus if name not in known]
    if unknown:
        raise InputError(f"{flavour} cannot build for {', '.join(unknown)}; choose from: {', '.join(known)}")
    return [divmod(_number(name), 10) for name in dict.fromkeys(gpus)]


def version_numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version, most significant first."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _number(name: str) -> int:
    """sm86 as 86; 0 for what is no such name."""
    return int(name[2:]) if name.startswith("sm") and name[2:].isdecimal() else 0
