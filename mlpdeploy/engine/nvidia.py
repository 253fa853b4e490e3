"""This machine's NVIDIA GPU, asked of the driver itself: no CUDA toolkit, PyTorch or TensorRT is imported."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import sys
from dataclasses import dataclass

from mlpdeploy.errors import InputError

CURRENT = "current"
"""The GPU of this machine, in `--gpu`."""
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute, cuda.h


@dataclass(frozen=True)
class Gpu:
    """The first GPU: its name, its compute capability ("sm86"), and the CUDA version that its driver supports."""

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
    try:
        return _ask()
    except _NoGpu as error:
        return str(error)


def see(device: str) -> None:
    """Let this process, and those that it starts, see one GPU alone: by its number among those it saw, or by its UUID.

    Before anything uses CUDA. Raises InputError where it is neither, or there are fewer.
    """
    numbered = device.isascii() and device.isdecimal()
    if not numbered and not device.startswith(("GPU-", "MIG-")):
        raise InputError(f"--device {device}: give a GPU's number, or its UUID, which begins with GPU-")
    if numbered and (seen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        listed = [part.strip() for part in seen.split(",") if part.strip()]
        if int(device) >= len(listed):
            raise InputError(
                f"--device {device}: of GPUs this process sees {len(listed)} (CUDA_VISIBLE_DEVICES={seen})"
            )
        device = listed[int(device)]
    os.environ["CUDA_VISIBLE_DEVICES"] = device
    probe.cache_clear()


def _ask() -> Gpu:
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        raise _NoGpu("no NVIDIA GPU (its driver library is not installed)") from None

    def call(function: str, *arguments: object) -> None:
        status = getattr(cuda, function)(*arguments)
        if status:
            raise _NoGpu(f"no usable NVIDIA GPU (the driver's {function} answered error {status})")

    count, device, driver = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    major, minor = ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    call("cuInit", 0)
    call("cuDeviceGetCount", ctypes.byref(count))
    if count.value == 0:
        raise _NoGpu("no NVIDIA GPU (the driver sees no device)")
    call("cuDriverGetVersion", ctypes.byref(driver))
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDeviceGetName", name, len(name), device)
    call("cuDeviceGetAttribute", ctypes.byref(major), _CAPABILITY_MAJOR, device)
    call("cuDeviceGetAttribute", ctypes.byref(minor), _CAPABILITY_MINOR, device)
    return Gpu(
        name=name.value.decode(errors="replace"),
        capability=f"sm{major.value}{minor.value}",
        driver=f"{driver.value // 1000}.{driver.value % 1000 // 10}",
    )
