"""Calls of an engine on a GPU, with tensors there and with arrays of the host, on the stand-in of torch.cuda."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import mlpdeploy
from mlpdeploy.calling import Calling
from mlpdeploy.engine import on_gpu
from mlpdeploy.engine.backend import backends
from mlpdeploy.engine.backends.tensorrt import _contexts
from mlpdeploy.engine.on_gpu import OnGpu
from mlpdeploy.engine.runner import Loading, OnDevice
from mlpdeploy.engine.signature import Port, Signature
from mlpdeploy.errors import InputError
from tests.engine.backends.fake_tensorrt import OUTPUTS, Engine, tensorrt
from tests.engine.fake_gpu import Gpu, gpu
from tests.test_api import Net, images

__all__ = ["gpu"]
SIGNATURE = Signature((Port("x", (4,), "float32"),), tuple(OUTPUTS), 1, 64)
MANIFEST = {
    "inputs": [{"name": "x", "shape": ["batch", 4], "dtype": "float32"}],
    "outputs": [{"name": port.name, "shape": ["batch", 4], "dtype": port.dtype} for port in OUTPUTS],
}


def loaded(engine: Engine, flavour: str = "tensorrt", **how: Any) -> AbstractContextManager[OnDevice]:
    engine.largest = 64
    of = _contexts.Loaded(tensorrt(flavour), engine, [])
    contexts = OnGpu(lambda: _contexts.computing(of), partial(_contexts.bind, of, OUTPUTS))
    return contexts.runner(SIGNATURE, Loading(**how), True)


def on_device(rows: int, value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.empty((rows, 4), dtype=dtype, device="cuda")
    with torch._C.DisableTorchFunction():
        return x.fill_(value)


def numbers(gpu: Gpu, found: Any) -> dict[str, Any]:
    """The first number of each output, once the GPU has come that far; all are the same."""
    gpu.synchronize()
    assert all((one == one.flatten()[0]).all() for one in found.values())
    return {name: one.flatten()[0].item() for name, one in found.items()}


def done(gpu: Gpu) -> list[tuple[str, int]]:
    """What was enqueued since the last time."""
    found = [(what, stream) for what, stream in gpu.log if what not in ("allocate", "record")]
    gpu.log.clear()
    return found


def test_tensors_on_the_gpu_stay_there_and_nothing_is_waited_for(gpu: Gpu) -> None:
    with loaded(Engine(gpu)) as run:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            run({"x": on_device(3, 0.0)})  # makes the graph
            x, waits = on_device(3, 2.0), gpu.waits
            gpu.log.clear()
            found = run({"x": x})
        records = [one for one in gpu.log if one[0] == "record"]
        here = stream.cuda_stream
        assert gpu.waits == waits and records == [("record", here)] * 3
        assert done(gpu) == [("copy within", here), ("replay", here), *[("copy within", here)] * 2]
        assert all(one.is_cuda for one in found.values())
        assert [(one.shape, one.dtype) for one in found.values()] == [((3, 4), torch.float32), ((3, 4), torch.float16)]
        assert numbers(gpu, found) == {"y": 4.0, "half": 2.0}


def test_each_batch_size_has_one_graph_and_answers_stay(gpu: Gpu) -> None:
    with loaded(Engine(gpu)) as run:
        found = [run({"x": on_device(rows, value)}) for rows, value in ((1, 1.0), (3, 2.0), (1, 3.0), (3, 4.0))]
        assert len(gpu.capture_modes) == 2
        assert [numbers(gpu, one)["y"] for one in found] == [2.0, 4.0, 6.0, 8.0]


def test_without_graphs_the_engine_reads_and_writes_the_callers_tensors(gpu: Gpu) -> None:
    engine = Engine(gpu)
    with loaded(engine, cuda_graphs=False) as run:
        for rows in (3, 1, 3):
            x, out = on_device(rows, 2.0), {"y": on_device(rows, 0.0), "half": on_device(rows, 0.0, torch.float16)}
            found = run({"x": x}, out)
            (context,) = engine.contexts
            assert all(found[name] is one for name, one in out.items())
            assert context.addresses == {name: one.data_ptr() for name, one in {"x": x, **out}.items()}
            assert done(gpu) == [("compute", 0)] and not gpu.capture_modes
            assert numbers(gpu, found) == {"y": 4.0, "half": 2.0}


def test_what_cannot_be_captured_is_enqueued_as_it_is(gpu: Gpu) -> None:
    engine = Engine(gpu, capturable=False)
    with loaded(engine, "tensorrt_rtx") as run:
        run({"x": on_device(2, 1.0)})
        gpu.log.clear()
        found = run({"x": on_device(2, 3.0)})
        assert done(gpu) == [("compute", 0)] and not gpu.capture_modes and numbers(gpu, found)["y"] == 6.0


@pytest.mark.parametrize("graphs", [True, False])
def test_arrays_of_the_host_go_through_pinned_memory_and_are_waited_for_once(gpu: Gpu, graphs: bool) -> None:
    with loaded(Engine(gpu), cuda_graphs=graphs) as run:
        x = np.full((3, 4), 1.0, np.float32)
        first = run({"x": x})
        pinned, waits = len(gpu.pinned), gpu.waits
        gpu.log.clear()
        x[...] = 5.0
        found = run({"x": x})
        assert gpu.waits == waits + 1 and len(gpu.pinned) == pinned == 3
        computing = "replay" if graphs else "compute"
        assert [what for what, _ in done(gpu)] == ["copy in", computing, "copy out", "copy out"]
    assert found["y"].tolist() == [[10.0] * 4] * 3 and found["half"].dtype == np.float16
    assert first["y"].tolist() == [[2.0] * 4] * 3, "a later call does not write into an answer"


def test_each_stream_has_its_context_and_a_pool_of_one_goes_from_stream_to_stream(gpu: Gpu) -> None:
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]

    def behind(**how: Any) -> int:
        with loaded(Engine(gpu), cuda_graphs=False, **how) as run:
            gpu.log.clear()
            for stream in 2 * streams:
                with torch.cuda.stream(stream):
                    found = run({"x": on_device(2, 2.0)})
            handles = {stream.cuda_stream for stream in streams}
            gone = [one for one in gpu.log if one[0].startswith("behind") and int(one[0].split()[1]) in handles]
            assert numbers(gpu, found)["y"] == 4.0
            return len(gone)

    assert behind() == 0 and behind(contexts=1) == 3


def test_of_many_batch_sizes_the_oldest_is_let_go(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpu, "MOST_SIZES", 2)
    with loaded(Engine(gpu)) as run:
        for rows in (1, 2, 1, 3, 2, 1):
            assert numbers(gpu, run({"x": on_device(rows, rows)}))["y"] == 2.0 * rows
    assert len(gpu.capture_modes) == 4


def test_when_it_is_closed_the_gpu_has_done_its_work(gpu: Gpu) -> None:
    with loaded(Engine(gpu)) as run:
        run({"x": on_device(2, 1.0)})
        found = run({"x": on_device(2, 3.0)})
    assert (found["y"] == 6.0).all()


def test_tensors_that_are_elsewhere_and_graphs_of_the_callers_are_refused(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loaded(Engine(gpu)) as run:
        with pytest.raises(InputError, match="the engine is on cuda:0; it was given 'x' on cpu"):
            run({"x": torch.zeros(2, 4)})
        with pytest.raises(InputError, match="built for batch 1 to 64; it was given 65"):
            run({"x": on_device(65, 1.0)})
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.raises(InputError, match="load the engine with cuda_graphs=False"):
            run({"x": on_device(2, 1.0)})


class Held:
    """What `Calling` asks of an engine."""

    on_gpu = True

    def __init__(self, run: OnDevice) -> None:
        self.run = run

    def __call__(self, *given: Any) -> Any:
        return self.run(*given)


def test_a_call_in_the_callers_terms(gpu: Gpu) -> None:
    calling = Calling(MANIFEST)
    with loaded(Engine(gpu)) as run:
        engine: Any = Held(run)
        y, half = calling(engine, (on_device(2, 2.0),))
        assert y.is_cuda and numbers(gpu, {"y": y, "half": half}) == {"y": 4.0, "half": 2.0}
        out = on_device(2, 0.0), on_device(2, 0.0, torch.float16)
        assert calling(engine, (on_device(2, 3.0),), out) is out
        assert numbers(gpu, dict(zip("yh", out, strict=True))) == {"y": 6.0, "h": 3.0}
        wrong = {"y": out[0], "half": torch.zeros(2, 4, dtype=torch.float16)}
        with pytest.raises(
            InputError, match=r"out for 'half' must be float16 \[2, 4\] on cuda:0; it is float16 .* on cpu"
        ):
            calling(engine, (on_device(2, 3.0),), wrong)
        with pytest.raises(InputError, match="out for 'y' shares memory with 'x'"):
            calling(engine, (out[0],), out)
        y, _ = calling(engine, (torch.full((2, 4), 2.0),))
        assert not y.is_cuda and y.tolist() == [[4.0] * 4] * 2


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx", "inductor"])
@pytest.mark.parametrize("graphs", [True, False])
def test_a_gpu_is_called_from_its_own_streams(backend: str, graphs: bool) -> None:
    reason = backends()[backend].available() or backends()[backend].executable()
    if reason is not None or not torch.cuda.is_available():
        pytest.skip(reason or "PyTorch cannot use the GPU")
    network, gpus = Net().eval(), ("current",) if backend == "inductor" else ()
    engine = mlpdeploy.compile(
        network, images(2), precision="fp32", backend=backend, batch="1:2:4", gpus=gpus, cuda_graphs=graphs
    )
    known = {rows: network(images(rows, rows)).detach() for rows in (1, 2, 4)}
    with engine, engine.pool(2) as pool:
        for call in (engine, pool):
            for stream in (torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.Stream()):
                with torch.cuda.stream(stream):
                    found = {rows: call(images(rows, rows).cuda()) for rows in (1, 4, 2, 1)}
                    out = torch.empty_like(found[2])
                    assert call(images(2, 2).cuda().double(), out=out) is out
                    assert torch.equal(out, found[2]) and all(one.is_cuda for one in found.values())
                    assert all(torch.allclose(one.cpu(), known[rows], atol=1e-4) for rows, one in found.items())
            assert torch.allclose(call(images(4, 4)), known[4], atol=1e-4)
