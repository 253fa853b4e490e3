"""Work on a GPU as one CUDA graph, and how long it takes on the GPU's own clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from mlpdeploy.engine.base import one_line
from mlpdeploy.errors import MlpdeployError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mlpdeploy.engine.runner import Launch

WARMUP = 3
"""Launches before a graph is captured: TensorRT settles on a shape in its first, PyTorch asks for three."""

LEAD, MOST_LEADS = 2e-4, 64
"""Seconds of computing in front of what is timed, for the host to enqueue that meanwhile, and launches at the most."""

ROUNDS = 30


def captured(launch: Launch, stream: torch.cuda.Stream) -> tuple[Callable[[], Sequence[Tensor]], str | None]:
    """The work as a replay of one CUDA graph, after WARMUP launches; or as it is, and why it cannot be captured.

    `stream` must be the current one: PyTorch leaves the stream of a capture that fails to whoever entered it first.
    """
    import torch

    for _ in range(WARMUP):
        launch.run()
    stream.synchronize()
    if launch.uncapturable is not None:
        return launch.run, launch.uncapturable
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            outputs = launch.run()
    except (RuntimeError, MlpdeployError) as error:
        first: BaseException = error
        while first.__context__ is not None:  # ending a broken capture fails as well
            first = first.__context__
        return launch.run, one_line(first)

    def replay() -> Sequence[Tensor]:
        graph.replay()
        return outputs

    return replay, None


def leads(compute: float) -> int:
    """How many runs of `compute` seconds go in front of what is timed."""
    return min(MOST_LEADS, math.ceil(LEAD / max(compute, 1e-6)))


def seconds(launches: Mapping[str, Launch]) -> dict[str, float]:
    """Median seconds of the computing of each, in turns, each as one CUDA graph where it can be captured."""
    import torch

    stream, taken = torch.cuda.Stream(), {name: list[float]() for name in launches}
    with torch.cuda.stream(stream):
        runs = {name: captured(launch, stream)[0] for name, launch in launches.items()}
        once = {name: _timed(run, 0) for name, run in runs.items()}
        for _ in range(ROUNDS):
            for name, run in runs.items():
                taken[name].append(_timed(run, leads(once[name])))
    return {name: median(times) for name, times in taken.items()}


def _timed(run: Callable[[], object], ahead: int) -> float:
    """Seconds of one run on the current stream, behind `ahead` that are not timed."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(ahead):
        run()
    start.record()
    run()
    end.record()
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return 1e-3 * milliseconds
