"""The model of Triton's Python backend, called as the server calls it: with a stand-in for what the server brings."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mlpdeploy
from mlpdeploy.artifact import store
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.engine import nvidia
from mlpdeploy.errors import ArtifactError, MachineLacks
from mlpdeploy.export import triton
from mlpdeploy.export.triton import Wanted


class Tensor:
    """As the server's."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> np.ndarray:
        return self.array


class Response:
    """As the server's: outputs, or an error."""

    def __init__(self, outputs: list[Tensor] | None = None, error: str | None = None) -> None:
        self.outputs, self.error = {one.name: one.array for one in outputs or []}, error


class Fake:
    """An engine of which something else is called."""

    def __init__(self, engine: Any, called: Callable[..., Any]) -> None:
        self.inputs, self.close, self.called = engine.inputs, engine.close, called

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Any:
        return self.called(inputs)


@pytest.fixture
def model(artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The model of a repository, as the server makes it of the file that lies there."""
    server: Any = types.ModuleType("triton_python_backend_utils")
    server.Tensor, server.InferenceResponse, server.TritonError = Tensor, Response, str
    server.get_input_tensor_by_name = lambda request, name: Tensor(name, request[name])
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", server)
    found = triton.add(artifact, tmp_path / "models", Wanted("net", kind="python"))
    assert found["files"][-1] == "1/model.py" and not [*tmp_path.rglob(".*")]
    assert any("onnxruntime " in line and "ml_dtypes" in line for line in found["notes"])
    folder = tmp_path / "models" / "net"
    assert store.open_artifact(folder / "1" / "artifact").manifest == artifact.manifest
    spec = importlib.util.spec_from_file_location("model", folder / "1" / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    one = module.TritonPythonModel()
    one.initialize({
        "model_repository": str(folder), "model_version": "1", "model_instance_kind": "CPU",
        "model_config": json.dumps({"max_batch_size": 8}),
    })  # fmt: skip
    yield one
    one.finalize()


def test_requests_that_came_together_are_one_call_and_each_has_its_own_rows(
    model: Any, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = torch.randn(6, 3, 16, 16)
    requests = [{"input": rows[:1].numpy()}, {"input": rows[1:4].numpy()}, {"input": rows[4:].numpy()}]
    calls: list[int] = []
    engine = model.engine

    def counted(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        calls.append(len(inputs["input"]))
        return dict(engine(inputs))

    monkeypatch.setattr(model, "engine", Fake(engine, counted))
    answers = model.execute(requests)
    assert calls == [6] and [len(one.outputs["output"]) for one in answers] == [1, 3, 2]
    expected = mlpdeploy.load(artifact.folder)(rows)
    np.testing.assert_array_equal(np.concatenate([one.outputs["output"] for one in answers]), expected)
    model.batched = False
    assert [len(one.outputs["output"]) for one in model.execute(requests)] == [1, 3, 2] and calls == [6, 1, 3, 2]


def test_what_the_engine_refuses_is_an_error_of_each_request_and_the_next_is_answered(model: Any) -> None:
    image = np.zeros((1, 3, 16, 16), np.float32)
    first, second = model.execute([{"input": image}, {"input": np.repeat(image, 8, axis=0)}])
    assert "was built for batch 1 to 8; it was given 9" in first.error and second.error == first.error
    (answer,) = model.execute([{"input": image}])
    assert answer.error is None and answer.outputs["output"].shape == (1, 5)


def test_a_machine_that_cannot_run_the_engine_says_so(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(_: Any) -> Any:
        raise MachineLacks("no such library")

    monkeypatch.setattr(model, "engine", Fake(model.engine, lacking))
    (answer,) = model.execute([{"input": np.zeros((1, 3, 16, 16), np.float32)}])
    assert answer.error == "no such library"


def test_an_instance_sees_its_own_gpu_alone(model: Any, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(nvidia, "see", seen.append)
    args = {"model_instance_kind": "GPU", "model_instance_device_id": "3", "model_config": '{"max_batch_size": 8}'}
    with pytest.raises(ArtifactError, match="there is no artifact"):
        model.initialize({**args, "model_repository": str(artifact.folder), "model_version": "1"})
    assert seen == ["3"]
