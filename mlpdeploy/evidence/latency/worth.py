"""Whether 8 bits paid off: their latency beside FP16's and FP32's of a network, on every backend that runs here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from mlpdeploy.engine.backend import Backend, BuildRequest, Progress
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.onnx.emit import Emitted
from mlpdeploy.errors import MlpdeployError
from mlpdeploy.evidence.latency.clocks import Inputs, timed
from mlpdeploy.evidence.latency.timing import FASTER, SLOWER
from mlpdeploy.system.leftovers import temporary_folder

RIVALS = ("fp16", "fp32")
ROUNDS, SECONDS = 100, 8.0
"""How long one backend is measured: so many rounds, or what of them the seconds allow."""

Make = Callable[[str, str | None], Emitted]
"""A precision, and what lies beside 8-bit codes, to the file of that network."""


def worth(
    make: Make,
    backends: Mapping[str, Backend],
    rows: Mapping[str, np.ndarray],
    request: BuildRequest,
    progress: Progress,
) -> dict[str, Any]:
    """Latency in milliseconds by backend and precision, the ratio of 8 bits to each rival, and a verdict a backend.

    Every engine is built as `request` says, where that means something to its backend, for the one batch size that it
    is tuned for. `rows` (n, ...) by input name are repeated to fill it. Engines take turns within one measurement. A
    backend that cannot run here, or refuses a file, is named with the reason.
    """
    batch = request.batch.opt
    made: dict[tuple[str, str | None], Emitted] = {}

    def emitted(precision: str, beside: str | None) -> Emitted:
        if (precision, beside) not in made:
            made[precision, beside] = make(precision, beside)
        return made[precision, beside]

    inputs = [{name: np.resize(values, (batch, *values.shape[1:])) for name, values in rows.items()}]
    found: dict[str, Any] = {"batch": batch, "backends": {}, "not_measured": {}, "verdicts": []}
    for done, (name, backend) in enumerate(backends.items()):
        progress.step(f"{request.precision.upper()} in {name}", done, len(backends))
        reason = backend.available() or backend.supports(request.precision) or backend.executable()
        if reason is None and request.precision not in backend.multiplied:
            reason = f"it multiplies what {request.precision.upper()} codes stand for, and gains nothing by them"
        if reason is not None:
            found["not_measured"][name] = reason
            continue
        try:
            taken = _measured(emitted, backend, inputs, request, progress)
        except MlpdeployError as error:
            found["not_measured"][name] = str(error).splitlines()[0]
            continue
        found["backends"][name] = taken
        found["verdicts"].append(_verdict(name, taken))
    return found


def _measured(
    emitted: Make, backend: Backend, inputs: list[dict[str, np.ndarray]], request: BuildRequest, progress: Progress
) -> dict[str, Any]:
    batch, gpus = request.batch.opt, request.gpus
    with ExitStack() as stack:
        runners = {}
        for precision in (request.precision, *RIVALS):
            folder = stack.enter_context(temporary_folder())
            file = emitted(precision, backend.beside(precision))
            asked = replace(
                request,
                precision=precision,
                batch=Batch(batch, batch, batch),
                gpus=gpus if backend.supports(precision, gpus) is None else (),
            )
            built = backend.build(file, asked, folder, progress)
            runners[precision] = stack.enter_context(backend.load(built.engine, built.facts))
        taken = timed(runners, Inputs(dict.fromkeys(runners, inputs)), rounds=ROUNDS, seconds=SECONDS)
    ratios = {rival: taken.ratio(request.precision, rival) for rival in RIVALS}
    return {
        "median_ms": {precision: 1e3 * taken.latency(precision).median for precision in runners},
        "ratio": {rival: {**asdict(ratio), "verdict": ratio.verdict} for rival, ratio in ratios.items()},
    }


def _verdict(name: str, taken: Mapping[str, Any]) -> str:
    """`openvino: 2.10 times faster than fp32` of the fastest rival, or why 8 bits are not worth it."""
    rival = min(RIVALS, key=lambda one: taken["median_ms"][one])
    ratio = taken["ratio"][rival]
    if ratio["verdict"] == FASTER:
        return f"{name}: {1 / ratio['value']:.2f} times faster than {rival}"
    if ratio["verdict"] == SLOWER:
        return f"{name}: not worth it, {ratio['value']:.2f} times the time of {rival}"
    return f"{name}: not worth it, no faster than {rival} as far as can be told"
