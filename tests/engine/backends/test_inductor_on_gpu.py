"""Packages of inductor for a GPU, without one: where what they are called with lies."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mlpdeploy.engine import nvidia, programs
from mlpdeploy.engine.backend import Backend, BuildRequest, Built, backends
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.runner import Loading, OnDevice
from mlpdeploy.progress import Silent
from tests.engine.fake_gpu import Gpu, gpu
from tests.engine.small_networks import emitted

__all__ = ["gpu"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Backend, Built]:
    """A package for a GPU, of which nothing was compiled."""
    monkeypatch.setattr(nvidia, "probe", lambda: nvidia.Gpu("Stand-in", "sm90", "13.0"))
    monkeypatch.setattr(programs, "unserved", lambda gpu: None)
    monkeypatch.setattr(programs, "for_gpu", lambda typed: typed)
    monkeypatch.setattr(programs, "exported", lambda emitted, batch: None)
    monkeypatch.setattr(programs, "tune", lambda module, batch: None)
    monkeypatch.setattr("torch.export.passes.move_to_device_pass", lambda program, device: program)
    monkeypatch.setattr(
        "torch._inductor.aoti_compile_and_package",
        lambda program, package_path, **options: Path(package_path).write_bytes(b"package"),
    )
    backend = backends()["inductor"]
    request = BuildRequest("fp32", Batch(1, 2, 4), (nvidia.CURRENT,))
    return backend, backend.build(emitted("fp32"), request, tmp_path, Silent())


@pytest.mark.parametrize("graphs", [True, False])
def test_a_package_for_a_gpu_is_only_ever_given_tensors_there(
    graphs: bool, package: tuple[Backend, Built], gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given tensors of the host, the compiled code would read these addresses on the GPU."""
    backend, built = package
    (given,), (made,) = built.facts["inputs"], built.facts["outputs"]
    calls = []

    def run(arguments: list[torch.Tensor]) -> list[torch.Tensor]:
        calls.append([one.is_cuda for one in arguments])
        result = torch.empty_like(arguments[0].new_zeros(len(arguments[0]), *made["shape"]), device="cuda")
        return [result.zero_()]

    loaded: Any = SimpleNamespace(loader=SimpleNamespace(run=run))
    monkeypatch.setattr("torch._inductor.aoti_load_package", lambda path: loaded)
    with backend.load(built.engine, built.facts, Loading(cuda_graphs=graphs)) as engine:
        assert isinstance(engine, OnDevice)
        engine({given["name"]: np.zeros((3, *given["shape"]), np.float32)})
        there = torch.empty_like(torch.zeros(3, *given["shape"]), device="cuda")
        engine({given["name"]: there})
        engine.bind({given["name"]: there}).run()
    assert calls and all(all(places) for places in calls)
