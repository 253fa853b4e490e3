"""Which NVIDIA GPUs there are, and which of them a process sees."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlpdeploy.engine import nvidia
from mlpdeploy.errors import InputError


@pytest.mark.gpu
def test_the_driver_names_the_gpu() -> None:
    gpu = nvidia.probe()
    if isinstance(gpu, str):
        pytest.skip(gpu)
    assert gpu.capability.startswith("sm") and gpu.name and np.prod([int(n) for n in gpu.driver.split(".")]) >= 0


class Driver:
    """A stand-in of cuda.bindings.driver: `broken` names the function that fails, `gpus` are names and capabilities."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=75, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=76
    )

    def __init__(self, *gpus: tuple[str, int, int], broken: str = "", absent: bool = False) -> None:
        self.gpus, self.broken, self.absent = gpus, broken, absent

    def __getattr__(self, function: str) -> Any:
        answers: dict[str, Callable[..., Any]] = {
            "cuDeviceGetCount": lambda: len(self.gpus),
            "cuDriverGetVersion": lambda: 12080,
            "cuDeviceGet": lambda number: number,
            "cuDeviceGetName": lambda length, number: self.gpus[number][0].encode().ljust(length, b"\0"),
            "cuDeviceGetAttribute": lambda attribute, number: self.gpus[number][attribute - 74],
        }

        def call(*arguments: Any) -> tuple[Any, ...]:
            if self.absent:
                raise RuntimeError("libcuda.so.1 is not there")
            if function == self.broken:
                return (999,)
            return (0, answers[function](*arguments)) if function in answers else (0,)

        return call


@pytest.mark.parametrize(
    ("seen", "device", "then"),
    [(None, "1", "1"), ("2,3", "1", "3"), ("GPU-a, GPU-b", "1", "GPU-b"), ("2,3", "GPU-c", "GPU-c")],
)
def test_one_gpu_is_seen_alone(seen: str | None, device: str, then: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if seen is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    nvidia.see(device)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == then


@pytest.mark.parametrize(
    ("device", "said"), [("2", "of GPUs this process sees 2"), ("-1", "give a GPU's number"), ("cuda:0", "its UUID")]
)
def test_a_gpu_that_cannot_be_is_refused(device: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    with pytest.raises(InputError, match=said):
        nvidia.see(device)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_gpus_that_were_hidden_stay_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(InputError, match="this process sees 0"):
        nvidia.see("0")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        (Driver(("Stand-in", 12, 0)), (nvidia.Gpu("Stand-in", "sm120", "12.8"),)),
        (
            Driver(("NVIDIA L4", 8, 9), ("NVIDIA H200", 9, 0)),
            (nvidia.Gpu("NVIDIA L4", "sm89", "12.8"), nvidia.Gpu("NVIDIA H200", "sm90", "12.8")),
        ),
        (Driver(), "no NVIDIA GPU (the driver sees no device)"),
        (Driver(absent=True), "no NVIDIA GPU (its driver library is not installed)"),
        (Driver(broken="cuInit"), "no usable NVIDIA GPU (the driver's cuInit answered error 999)"),
    ],
)
def test_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch, driver: Driver, expected: object) -> None:
    monkeypatch.setattr(nvidia, "_driver", lambda: driver)
    assert nvidia.gpus.__wrapped__() == expected


def test_without_the_bindings_their_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert nvidia.gpus.__wrapped__() == "no NVIDIA GPU can be asked for: pip install cuda-bindings"
