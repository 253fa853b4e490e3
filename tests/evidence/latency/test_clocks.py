"""What is timed on a GPU, in which order and where: on a stand-in of torch.cuda, and on a GPU where there is one."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from mlpdeploy.commands import benching
from mlpdeploy.engine import cuda_graphs, programs
from mlpdeploy.engine.runner import Launch, OnDevice
from mlpdeploy.errors import ArtifactError
from mlpdeploy.evidence.documents.bench import DevicePhases
from mlpdeploy.evidence.latency import clocks, contenders, load_pairs, sittings, timing
from mlpdeploy.graph.tracing.trace import TensorSpec
from mlpdeploy.progress import Silent
from mlpdeploy.terminal.measurements import print_bench
from tests.engine.fake_gpu import SECONDS, Gpu, gpu
from tests.evidence import examples

__all__ = ["gpu"]
SPEC = TensorSpec("x", (4,), torch.float32)


class Doubler:
    """An engine that computes 2 x, into a buffer that it allocates when it is bound."""

    def __init__(self, gpu: Gpu, fails: Exception | None = None, uncapturable: str | None = None) -> None:
        self.gpu, self.fails, self.uncapturable = gpu, fails, uncapturable
        self.computed: list[list[float]] = []

    def bind(self, inputs: Mapping[str, torch.Tensor]) -> Launch:
        x = inputs["x"]
        y = torch.empty(x.shape, device="cuda")

        def work() -> None:
            self.computed.append(x.tolist())
            with torch._C.DisableTorchFunction():
                y.copy_(2 * x)

        def run() -> Sequence[torch.Tensor]:
            if self.gpu.current.graph is not None and self.fails is not None:
                raise self.fails
            self.gpu.enqueue("compute", work)
            return [y]

        return Launch(run, self.uncapturable)

    def on_device(self) -> OnDevice:
        return OnDevice(lambda inputs: pytest.fail("the host's clock was used"), self.bind)


def values(count: int) -> list[dict[str, np.ndarray]]:
    return [{"x": np.full((2, 4), float(place), np.float32)} for place in range(count)]


def bound(one: Doubler, count: int = 3) -> clocks.DeviceCall:
    return clocks.DeviceCall(one.bind, clocks.Inputs({"a": values(count)}).pinned["a"])


def test_a_call_copies_in_computes_and_copies_out_between_events_on_one_stream(gpu: Gpu) -> None:
    call = bound(Doubler(gpu))
    gpu.log.clear()
    found = call.phases(1)
    leads = cuda_graphs.LEAD / SECONDS["compute"]
    assert [what for what, _ in gpu.log] == [
        *["replay"] * math.ceil(leads), "event", "copy in", "event", "replay", "event", "copy out", "event",
    ]  # fmt: skip
    assert len({stream for _, stream in gpu.log}) == 1 and gpu.log[0][1] != gpu.default.cuda_stream
    expected = (SECONDS["copy in"], SECONDS["compute"], SECONDS["copy out"])
    assert (found.host_to_device, found.compute, found.device_to_host) == pytest.approx(expected)
    assert call.uncaptured is None and gpu.capture_modes == ["thread_local"]


def test_nothing_is_allocated_once_it_is_bound_and_the_outputs_come_back(gpu: Gpu) -> None:
    call = bound(Doubler(gpu))
    gpu.log.clear()
    for place in (0, 2, 1):
        call.phases(place)
        assert [output.tolist() for output in call._outputs] == [[[2.0 * place] * 4] * 2]
    assert not {"allocate", "pin"} & {what for what, _ in gpu.log}


def test_inputs_are_rotated_and_the_same_for_all_in_a_round(gpu: Gpu) -> None:
    both = {name: Doubler(gpu) for name in "ab"}
    inputs = clocks.Inputs(dict.fromkeys(both, values(3)))
    calls = {name: one.on_device() for name, one in both.items()}
    taken = clocks.timed(calls, inputs, rounds=6, seconds=None, seed=0)
    assert len({id(one["x"]) for values in inputs.pinned.values() for one in values}) == 3  # shared by both
    # After each lead, which has the input of the round before, comes the call that is timed.
    timed = [[one.computed[place][0] for place in range(-1, -31, -5)][::-1] for one in both.values()]
    assert timed == [[[0.0] * 4, [1.0] * 4, [2.0] * 4] * 2] * 2
    assert set(taken.seconds) == {"a", "b"} and taken.calls == {"a": 1, "b": 1} and len(taken.phases["a"]) == 6
    assert taken.seconds["a"] == pytest.approx(np.full(6, SECONDS["compute"]))
    assert taken.end_to_end("a") == pytest.approx(sum(SECONDS.values()))
    assert taken.uncaptured == {"a": "", "b": ""} and taken.host_clock == ""


@pytest.mark.parametrize("fails", [RuntimeError("cublas wants memory\nand more"), ArtifactError("cublas wants memory")])
def test_what_cannot_be_captured_runs_as_it_is_and_says_why(gpu: Gpu, fails: Exception) -> None:
    call = bound(Doubler(gpu, fails))
    assert call.uncaptured == "cublas wants memory" and gpu.current is gpu.default
    gpu.log.clear()
    assert call.phases(0).compute == pytest.approx(SECONDS["compute"])
    assert "replay" not in {what for what, _ in gpu.log} and gpu.log[-3][0] == "event"


def test_waiting_while_capturing_is_named_and_not_what_it_broke(gpu: Gpu) -> None:
    class Waits(Doubler):
        def bind(self, inputs: Mapping[str, torch.Tensor]) -> Launch:
            launch = super().bind(inputs)

            def run() -> Sequence[torch.Tensor]:
                torch.cuda.synchronize()
                return launch.run()

            return Launch(run)

    call = bound(Waits(gpu))
    assert call.uncaptured == "CUDA error: operation not permitted when stream is capturing"
    assert gpu.current is gpu.default and call.phases(1).compute > 0


def test_an_engine_that_says_it_cannot_be_captured_is_not_tried(gpu: Gpu) -> None:
    call = bound(Doubler(gpu, uncapturable="it allocates"))
    assert call.uncaptured == "it allocates" and not gpu.capture_modes


def test_a_very_short_computing_is_led_by_a_bounded_number_of_launches(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SECONDS, "compute", 1e-7)
    call = bound(Doubler(gpu))
    gpu.log.clear()
    call.phases(0)
    assert [what for what, _ in gpu.log].count("replay") == cuda_graphs.MOST_LEADS + 1


def test_a_cpu_is_timed_on_the_hosts_clock() -> None:
    taken = clocks.timed({"a": lambda value: None}, clocks.Inputs({"a": [1, 2]}), rounds=3)
    assert not taken.phases and not taken.uncaptured and taken.host_clock == "" and taken.calls["a"] > 1
    assert taken.phases_of("a") is None and DevicePhases.of(taken, "a") is None


def test_without_cuda_in_pytorch_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    engine = OnDevice(lambda value: None, lambda inputs: pytest.fail("nothing can be bound"))
    taken = clocks.timed({"engine": engine}, clocks.Inputs({"engine": [1]}), rounds=3)
    assert taken.host_clock.startswith("PyTorch ") and taken.host_clock.endswith("whose events it records")


def test_one_contender_on_the_cpu_puts_all_on_the_hosts_clock(gpu: Gpu) -> None:
    engine = OnDevice(lambda value: None, lambda inputs: pytest.fail("it is not to be bound"))
    calls = {"engine": engine, "eager": lambda value: None}
    taken = clocks.timed(calls, clocks.Inputs({name: [1] for name in calls}), rounds=3)
    assert taken.host_clock == "eager does not run on the GPU" and not taken.phases


def test_two_clocks_are_never_held_against_each_other(gpu: Gpu) -> None:
    with pytest.raises(ValueError, match="cannot be held against each other"):
        timing.measure({"a": bound(Doubler(gpu)), "b": lambda value: None}, range(3))


def test_a_pytorch_program_is_bound_by_the_names_of_its_inputs(gpu: Gpu) -> None:
    x, y = torch.ones(2, 3), torch.ones(2, 3)
    launch = programs.binder(lambda first, second: {"sum": first - second, "none": None}, ["y", "x"])({"x": x, "y": y})
    x.fill_(3.0)
    (out,) = launch.run()
    assert out.tolist() == [[-2.0] * 3] * 2 and out.is_inference()


def contender(name: str, one: Doubler) -> contenders.Contender:
    @contextlib.contextmanager
    def load() -> Iterator[Callable[[Any], object]]:
        yield one.on_device()

    return contenders.Contender(name, "engine", name, (SPEC,), lambda arrays: arrays, load)


@pytest.mark.slow
def test_sittings_and_pairs_are_timed_there_too(gpu: Gpu) -> None:
    both = [contender(name, Doubler(gpu)) for name in ("baseline", "candidate")]
    taken = sittings.sittings(both, [2], 3, 0.0, 0, Silent())[2]
    assert taken.sittings == (5, 5, 5) and taken.phases["baseline"].shape == (15, 3)
    assert taken.ratio("candidate", "baseline").value == pytest.approx(1.0)
    found = DevicePhases.of(taken, "candidate")
    assert found is not None and found.compute_ms == pytest.approx(1e3 * SECONDS["compute"])
    assert found.end_to_end_ms == pytest.approx(1e3 * sum(SECONDS.values())) and found.uncaptured == ""
    document = benching._measurement(2, taken, both).to_json()
    baseline, other = document["contenders"]
    assert document["host_clock"] == "" and other["phases"] == dataclasses.asdict(found)
    assert other["median_ms"] == pytest.approx(found.compute_ms) == pytest.approx(baseline["phases"]["compute_ms"])
    assert other["images_per_second"] == pytest.approx(2 / SECONDS["compute"]) and other["calls_a_sample"] == 1
    assert [one["baseline"] for one in baseline["ratios"]] == ["candidate"]
    (pair,) = next(load_pairs.pairs(both[0], both[1], {2: 0.0}, 0))
    assert pair.baseline[0].median == pytest.approx(SECONDS["compute"])


def test_the_phases_are_shown_within_80_columns() -> None:
    manifest = {"recipe": {"name": "a"}, "files": {"model.onnx": {"sha256": ""}}, "selection": {}}
    document = examples.on_gpu(examples.bench(manifest))
    document["network"] |= {"precision": "fp16", "backend": "tensorrt", "device": "cuda", "weights": "given"}
    document["machine"]["gpu"] = {"name": "Example GPU"}
    console = Console(width=80, record=True, file=io.StringIO())
    print_bench(console, document)
    text = console.export_text()
    lines = text.splitlines()
    (row,) = (line for line in lines if line.split()[:1] == ["eager"] and "0.0625" in line)
    assert row.split() == ["eager", "0.0625", "3.25", "0.01562", "3.328", "no"]
    assert "eager is no CUDA graph: it waits while it computes" in text and "Example GPU" in text
    assert "At batch 8 times are the host's, copies included: PyTorch cannot use the GPU" in text
    assert all(len(line.rstrip()) <= 80 for line in lines if "reached" not in line)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that PyTorch can use")
def test_a_gpu_times_pytorch_in_its_phases() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 256))
    spec = TensorSpec("x", (256,), torch.float32)
    eager = contenders.eager(network, [spec], torch.float16, "cuda")
    inputs = clocks.Inputs(contenders.prepared([eager], 512, 0))
    with eager.load() as call:
        assert isinstance(call, OnDevice)
        one = clocks.DeviceCall(call.bind, inputs.pinned["eager"])
        found = [one.phases(place) for place in (0, 1, 0)]
        assert one.uncaptured is None
        assert all(min(f.host_to_device, f.compute, f.device_to_host) > 0 for f in found)
        expected = call(inputs.values["eager"][0])
        assert torch.allclose(one._outputs[0], expected, atol=1e-2), "the outputs of the last call came back"
        taken = clocks.timed({"eager": call}, inputs, rounds=20, seconds=1.0)
    assert taken.host_clock == "" and taken.end_to_end("eager") > taken.latency("eager").median > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that PyTorch can use")
def test_a_gpu_that_cannot_capture_says_why() -> None:
    def waits(x: torch.Tensor) -> torch.Tensor:
        return x * float(x.sum().cpu())

    call = clocks.DeviceCall(programs.binder(waits, ["x"]), [{"x": torch.ones(4).pin_memory()}])
    assert call.uncaptured and "captur" in call.uncaptured and "\n" not in call.uncaptured
    assert call.phases(0).compute > 0 and call._outputs[0].tolist() == [4.0] * 4
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
