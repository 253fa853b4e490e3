"""This machine's NVIDIA GPUs, asked of the driver itself: no CUDA toolkit, PyTorch or TensorRT is imported."""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlpdeploy.errors import InputError, MachineLacks

CURRENT = "current"
"""The GPU of this machine, in `--gpu`."""
LONGEST_NAME = 256
"""Characters of a GPU's name that are asked for."""


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, its compute capability ("sm86"), and the CUDA version that its driver supports."""

    name: str
    capability: str
    driver: str

    def slug(self) -> str:
        """Its name as a part of a file's: `nvidia-l4`."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


class _NoGpu(Exception):
    """Why no GPU can be used."""


@functools.cache
def probe() -> Gpu | str:
    """The first NVIDIA GPU that CUDA sees, or one line: why none can be used."""
    found = gpus()
    return found if isinstance(found, str) else found[0]


def require() -> Gpu:
    """The GPU that `current` means. Raises MachineLacks where it means none."""
    if isinstance(gpu := probe(), str):
        raise MachineLacks(f"--gpu {CURRENT} means this machine's GPU: {gpu}")
    return gpu


def outdated(library: str, cuda: str, gpu: Gpu) -> str | None:
    """None where a GPU's driver serves a library that was made for that version of CUDA, else one line: why not.

    A driver serves every library of its own major version or an earlier one (CUDA's minor version compatibility).
    """
    needed, here = (int(version.partition(".")[0]) for version in (cuda, gpu.driver))
    if needed <= here:
        return None
    return f"the driver is too old: it is for CUDA {gpu.driver}, and {library} for CUDA {cuda}; install a newer driver"


@functools.cache
def gpus() -> tuple[Gpu, ...] | str:
    """The NVIDIA GPUs that CUDA sees, one or more; or one line: why none can be used."""
    try:
        return tuple(_ask())
    except _NoGpu as error:
        return str(error)


def see(device: str) -> None:
    """Let this process, and those that it starts, see one GPU alone: by its number among those it saw, or by its UUID.

    Before anything uses CUDA. Raises InputError where it is neither, or is hidden; a number that no GPU has shows when
    the GPUs are asked for, as the driver reads the variable once.
    """
    numbered = device.isascii() and device.isdecimal()
    if not numbered and not device.startswith(("GPU-", "MIG-")):
        raise InputError(f"--device {device}: give a GPU's number, or its UUID, which begins with GPU-")
    if numbered and (seen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        listed = _listed(seen)
        if int(device) >= len(listed):
            raise InputError(
                f"--device {device}: of GPUs this process sees {len(listed)} (CUDA_VISIBLE_DEVICES={seen})"
            )
        device = listed[int(device)]
    os.environ["CUDA_VISIBLE_DEVICES"] = device
    probe.cache_clear()
    gpus.cache_clear()


def _listed(seen: str) -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES names: those before the first that is none, such as -1."""
    named = (part.strip() for part in seen.split(","))
    return list(itertools.takewhile(lambda part: part and not part.startswith("-"), named))


def _ask() -> Iterator[Gpu]:
    driver = _driver()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    none_seen = "the driver sees no device" + ("" if visible is None else f" with CUDA_VISIBLE_DEVICES={visible}")

    def call(function: str, *arguments: Any) -> Any:
        try:
            status, *values = getattr(driver, function)(*arguments)
        except RuntimeError:  # cuda-bindings looks for the driver's library at the first call
            raise _NoGpu("no NVIDIA GPU (its driver library is not installed)") from None
        if status == driver.CUresult.CUDA_ERROR_NO_DEVICE:
            raise _NoGpu(f"no NVIDIA GPU ({none_seen})")
        if int(status):
            raise _NoGpu(f"no usable NVIDIA GPU (the driver's {function} answered {status.name})")
        return values[0] if values else None

    call("cuInit", 0)
    count, version = call("cuDeviceGetCount"), call("cuDriverGetVersion")
    if count == 0:
        raise _NoGpu(f"no NVIDIA GPU ({none_seen})")
    major, minor = (
        getattr(driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}")
        for part in ("MAJOR", "MINOR")
    )
    for number in range(count):
        device = call("cuDeviceGet", number)
        name = call("cuDeviceGetName", LONGEST_NAME, device).split(b"\0")[0].decode(errors="replace")
        capability = f"sm{call('cuDeviceGetAttribute', major, device)}{call('cuDeviceGetAttribute', minor, device)}"
        yield Gpu(name, capability, f"{version // 1000}.{version % 1000 // 10}")


def _driver() -> Any:
    """NVIDIA's bindings to the driver, which PyTorch's CUDA build comes with."""
    try:
        from cuda.bindings import driver
    except ImportError:
        raise _NoGpu("no NVIDIA GPU can be asked for: pip install cuda-bindings") from None
    return driver
