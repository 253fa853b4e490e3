"""What the tests of backends can use."""

from __future__ import annotations

import pytest

from mlpdeploy.engine.backend import backends
from mlpdeploy.engine.backends.tensorrt import TensorRT


@pytest.fixture
def rtx() -> TensorRT:
    backend = backends()["tensorrt-rtx"]
    reason = backend.available()
    if reason is not None:
        pytest.skip(reason)
    assert isinstance(backend, TensorRT)
    return backend
