"""Which NVIDIA GPUs there are, and which of them a process sees."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from enum import IntEnum
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


class Result(IntEnum):
    """Some of the driver's answers."""

    CUDA_SUCCESS, CUDA_ERROR_NO_DEVICE, CUDA_ERROR_SYSTEM_DRIVER_MISMATCH = 0, 100, 803


class Driver:
    """A stand-in of cuda.bindings.driver: `gpus` are names and capabilities, and cuInit answers with `error`."""

    CUresult = Result
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=75, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=76
    )

    def __init__(self, *gpus: tuple[str, int, int], error: str = "", absent: bool = False) -> None:
        self.gpus, self.error, self.absent = gpus, error, absent

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
            if function == "cuInit":
                return (self.CUresult[self.error or "CUDA_SUCCESS"],)
            return (self.CUresult.CUDA_SUCCESS, answers[function](*arguments))

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


@pytest.mark.parametrize(("hidden", "device"), [("", "0"), ("-1", "0"), ("0,-1,1", "1"), ("0,,1", "1")])
def test_gpus_that_were_hidden_stay_hidden(hidden: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    with pytest.raises(InputError, match="this process sees"):
        nvidia.see(device)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == hidden


def test_a_number_that_no_gpu_has_is_told_where_the_driver_finds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvidia.see("99")
    monkeypatch.setattr(nvidia, "_driver", lambda: Driver(error="CUDA_ERROR_NO_DEVICE"))
    assert nvidia.gpus() == "no NVIDIA GPU (the driver sees no device with CUDA_VISIBLE_DEVICES=99)"
    nvidia.gpus.cache_clear()


@pytest.mark.parametrize(
    ("cuda", "served"), [("13.0", False), ("13", False), ("12.9", True), ("12.8", True), ("12", True), ("11.8", True)]
)
def test_a_driver_serves_what_is_made_for_its_major_version_and_earlier_ones(cuda: str, served: bool) -> None:
    said = nvidia.outdated("a library", cuda, nvidia.Gpu("NVIDIA L4", "sm89", "12.8"))
    too_old = f"the driver is too old: it is for CUDA 12.8, and a library for CUDA {cuda}; install a newer driver"
    assert said == (None if served else too_old)


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
        (Driver(error="CUDA_ERROR_NO_DEVICE"), "no NVIDIA GPU (the driver sees no device)"),
        (
            Driver(error="CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
            "no usable NVIDIA GPU (the driver's cuInit answered CUDA_ERROR_SYSTEM_DRIVER_MISMATCH)",
        ),
    ],
)
def test_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch, driver: Driver, expected: object) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(nvidia, "_driver", lambda: driver)
    assert nvidia.gpus.__wrapped__() == expected


def test_without_the_bindings_their_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert nvidia.gpus.__wrapped__() == "no NVIDIA GPU can be asked for: pip install cuda-bindings"
