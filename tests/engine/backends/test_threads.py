"""One loaded engine and many threads: each has the answer to its own inputs, and answers are the caller's own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mlpdeploy
from mlpdeploy.engine import nvidia
from mlpdeploy.engine.backend import Backend, BuildRequest, Built, backends
from mlpdeploy.engine.backends.tensorrt import _contexts, _polygraphy
from mlpdeploy.engine.base import EngineBackend
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.onnx.emit import emit
from mlpdeploy.engine.runner import Contexts, OnDevice
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from mlpdeploy.system.files import sha256
from tests.engine.backends.test_cpu_engines import Silent

THREADS, CALLS = 8, 200
CPU = ("openvino", "onnxruntime", "inductor")
Arrays = Mapping[str, np.ndarray]


class Answers(nn.Module):
    """What it computes of its input, the input itself, and a weight of its own for each row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(12, 32), nn.Linear(32, 5)
        self.own = nn.Parameter(torch.randn(1, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.second(torch.tanh(self.first(x))), x, self.own.expand(x.shape[0], 4)


def rows(batch: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 12), dtype=np.float32)


def answered(network: nn.Module, x: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        return [output.numpy() for output in network(torch.from_numpy(x))]


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Backend, Built]:
    backend = backends()[request.param]
    if (reason := backend.available()) is not None:
        pytest.skip(f"{request.param}: {reason}")
    rewritten = rewrite(trace(Answers(), [TensorSpec("x", (12,), torch.float32)]))
    given = emit(apply(rewritten, plan(rewritten, "fp32")))
    folder = tmp_path_factory.mktemp(request.param)
    return backend, backend.build(given, BuildRequest("fp32", Batch(1, 4, 64), threads=1), folder, Silent())


def right_answers(call: Callable[[Arrays], Sequence[np.ndarray]], wanted: Callable[[np.ndarray], Any]) -> int:
    """How many of THREADS * CALLS calls at once, of batches from 1 to 64, are answered rightly."""
    given = [rows(batch, seed) for seed, batch in enumerate((1, 64, 2, 17, 3, 8, 33, 5))]
    known = [(x, wanted(x)) for x in given]

    def many(place: int) -> int:
        right = 0
        for turn in range(CALLS):
            x, expected = known[(place + turn) % len(known)]
            found = call({"x": x})
            shapes = all(one.shape == other.shape for one, other in zip(found, expected, strict=True))
            right += shapes and all(np.allclose(*pair, atol=1e-5) for pair in zip(found, expected, strict=True))
        return right

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(many, range(THREADS)))


@pytest.mark.slow
@pytest.mark.parametrize("engine", CPU, indirect=True)
def test_each_of_1600_calls_from_8_threads_has_its_own_answer(engine: tuple[Backend, Built]) -> None:
    backend, built = engine
    with backend.load(built.engine, built.facts) as run:
        right = right_answers(lambda arrays: list(run(arrays).values()), lambda x: answered(Answers(), x))
    assert right == THREADS * CALLS


@pytest.mark.slow
@pytest.mark.parametrize("engine", CPU, indirect=True)
def test_answers_share_no_memory_with_inputs_or_the_engine(engine: tuple[Backend, Built]) -> None:
    backend, built = engine
    x = rows(3, 1)
    expected = answered(Answers(), x.copy())
    with backend.load(built.engine, built.facts) as run:
        found = list(run({"x": x}).values())
        assert not any(np.shares_memory(one, x) for one in found)
        for one in found:
            one[...] = np.nan  # the caller's own, to write into
        again = list(run({"x": x}).values())
    assert all(np.allclose(one, wanted, atol=1e-6) for one, wanted in zip(again, expected, strict=True))
    assert all(one.flags.writeable and one.flags.c_contiguous for one in found)


@pytest.mark.slow
@pytest.mark.parametrize("engine", CPU, indirect=True)
def test_an_input_is_not_kept(engine: tuple[Backend, Built]) -> None:
    import sys

    backend, built = engine
    x = rows(3, 1)
    before = sys.getrefcount(x)
    with backend.load(built.engine, built.facts) as run:
        run({"x": x})
        assert sys.getrefcount(x) == before


class Fragile:
    """What computes 2 x into a buffer that all its calls share, and minds being called before its last call ended."""

    def __init__(self, *given: Any) -> None:
        self.busy, self.buffer = False, np.zeros((64, 12), np.float32)

    def infer(self, inputs: Arrays, check_inputs: bool = False) -> dict[str, np.ndarray]:
        assert not self.busy, "called while it was computing"
        self.busy, x = True, inputs["x"]
        time.sleep(1e-5)
        np.multiply(x, 2, out=self.buffer[: len(x)])
        self.busy = False
        return {"y": self.buffer[: len(x)]}

    def compute(self, inputs: Arrays, outputs: Arrays) -> None:
        outputs["y"][...] = self.infer(inputs)["y"]

    def bind(self, inputs: Arrays) -> Any:
        return self.infer(inputs)["y"].copy()

    def __enter__(self) -> Fragile:
        return self

    def __exit__(self, *error: object) -> None: ...


class Plain(EngineBackend):
    """A backend that knows nothing of threads."""

    name, engine_file, packages = "plain", "engine.bin", ()

    def __init__(self) -> None:
        self.loads = 0

    def available(self) -> str | None:
        return None

    def executable(self) -> str | None:
        return None

    def _build(self, *given: Any) -> dict[str, Any]:
        raise NotImplementedError

    @contextlib.contextmanager
    def _load(self, *given: Any) -> Iterator[Contexts]:
        self.loads += 1
        fragile = Fragile()
        yield Contexts(lambda: fragile.compute, fragile.bind)  # type: ignore[arg-type]


def stored(folder: Path, backend: str) -> tuple[Path, dict[str, Any]]:
    """An engine's file and facts."""
    path = folder / "engine.bin"
    path.write_bytes(b"engine")
    port = {"shape": [12], "dtype": "float32"}
    ports = {"inputs": [{"name": "x", **port}], "outputs": [{"name": "y", **port}]}
    return path, {"backend": backend, "batch": [1, 4, 64], "engine_sha256": sha256(path), "versions": {}, **ports}


def doubled(x: np.ndarray) -> list[np.ndarray]:
    return [2 * x]


def test_calls_take_turns_where_a_backend_does_not_say_that_they_need_not(tmp_path: Path) -> None:
    with Plain().load(*stored(tmp_path, "plain")) as run:
        assert right_answers(lambda arrays: list(run(arrays).values()), doubled) == THREADS * CALLS
        assert isinstance(run, OnDevice)
        assert right_answers(lambda arrays: [run.bind(arrays)], doubled) == THREADS * CALLS  # type: ignore[arg-type, list-item]


def test_the_backends_whose_calls_need_not_take_turns_are_those_tested_here() -> None:
    found = {name for name, backend in backends().items() if backend.concurrent}  # type: ignore[attr-defined]
    assert found == {"openvino", "onnxruntime", "tensorrt", "tensorrt-rtx"}


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_each_call_of_tensorrt_has_a_context_and_contexts_are_bound_in_turns(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    _polygraphy.bind("tensorrt-rtx")
    backend = backends()[name]
    made: list[Fragile] = []
    monkeypatch.setattr("polygraphy.backend.trt.TrtRunner", lambda of: made.append(Fragile()) or made[-1])
    monkeypatch.setattr(nvidia, "probe", lambda: nvidia.Gpu("Stand-in", "sm89", "13.0"))
    monkeypatch.setattr(type(backend), "versions", lambda self: {})
    monkeypatch.setattr(type(backend), "executable", lambda self: None)
    monkeypatch.setattr(_contexts, "context", lambda *_: None)
    loaded = contextlib.nullcontext(_contexts.Loaded(None, None, []))
    monkeypatch.setattr(_contexts, "deserialised", lambda flavour, engine, facts: loaded)
    binds = Fragile()
    monkeypatch.setattr(_contexts, "bind", lambda loaded, outputs, inputs: binds.bind(inputs))
    with backend.load(*stored(tmp_path, name)) as run:
        assert isinstance(run, OnDevice)
        assert right_answers(lambda arrays: list(run(arrays).values()), doubled) == THREADS * CALLS
        assert right_answers(lambda arrays: [run.bind(arrays)], doubled) == THREADS * CALLS  # type: ignore[arg-type, list-item]
    assert 1 < len(made) <= THREADS


@pytest.mark.slow
def test_an_engine_in_hand_is_called_and_closed_by_threads() -> None:
    network = Answers().eval()
    engine = mlpdeploy.compile(network, torch.zeros(1, 12), precision="fp32", backend="openvino", batch="1:4:64")

    def call(arrays: Arrays) -> list[np.ndarray]:
        found = list(engine(arrays["x"]))
        if len(arrays["x"]) == 33:
            engine.close()
        return found

    assert right_answers(call, lambda x: answered(network, x)) == THREADS * CALLS
