"""A TensorRT engine is loaded where PyTorch is not installed: Polygraphy calls it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mlpdeploy.engine.backend import backends
from mlpdeploy.engine.backends.tensorrt import _contexts
from mlpdeploy.engine.on_gpu import OnGpu
from mlpdeploy.engine.signature import Port, Signature
from tests.engine.backends.fake_tensorrt import OUTPUTS, Engine, tensorrt


def test_pytorch_is_asked_for_the_gpu_only_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    @contextmanager
    def opened(*_: object) -> Iterator[_contexts.Loaded]:
        yield _contexts.Loaded(tensorrt("tensorrt"), Engine(None), [])

    signature = Signature((Port("x", (4,), "float32"),), tuple(OUTPUTS), 1, 9)
    backend: Any = backends()["tensorrt"]
    monkeypatch.setattr(_contexts, "deserialised", opened)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with backend._load(tmp_path / "engine.plan", signature, {}) as contexts:
        assert isinstance(contexts, OnGpu)
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises ImportError
    with backend._load(tmp_path / "engine.plan", signature, {}) as contexts:
        assert not isinstance(contexts, OnGpu)
