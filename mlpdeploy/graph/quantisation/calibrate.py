"""Stage 3 of a quantised build: the network runs over real inputs, and every activation to be quantised gets its range.

    channels' ranges -> equalise -> histograms of magnitudes -> thresholds by calibrator -> the best by output SQNR

Everything is computed in FP32 by PyTorch, over the whole data, twice at most; nothing is drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from mlpdeploy.errors import InputError
from mlpdeploy.graph.editor import weight
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.quantisation.calibrators import BINS, CALIBRATORS, Histogram, threshold
from mlpdeploy.graph.quantisation.codes import CODES, NVFP4, Codes
from mlpdeploy.graph.quantisation.equalise import Channels, equalise, factors
from mlpdeploy.graph.quantisation.sites import Quantisation, Site, taking
from mlpdeploy.graph.rewrite import Rewritten
from mlpdeploy.graph.tracing.rows import chunks, fixed_batch

AUTO = "auto"
BATCH = 8
TRIED_ROWS = 32
"""Rows, spread over the data, on which `auto` compares the calibrators."""

EXACT_DB = 300.0
"""More than float64 can tell apart."""

Arrays = Mapping[str, np.ndarray]
Step = Callable[[str, int, int], None]


def calibrate(
    rewritten: Rewritten,
    data: Arrays,
    calibrator: str = AUTO,
    precision: str = "int8",
    step: Step = lambda phase, done, total: None,
    *,
    equalising: bool = True,
    kept: Mapping[str, str] | None = None,
) -> Quantisation:
    """Calibrate codes of a precision, "int8", "fp8" or "nvfp4", on `data`: arrays (n, ...) by input name.

    `calibrator` is one of CALIBRATORS, or `auto`, which tries all on TRIED_ROWS of the rows and keeps the one whose
    output has the highest signal to quantisation noise. `equalising` moves wide channels' ranges into the weights
    first. NVFP4 has neither: its calibrator is `max`. `kept` are sites that stay as they are, with the reason. Raises
    InputError where the network's values are not finite on the data.
    """
    if calibrator != AUTO and calibrator not in CALIBRATORS:
        raise InputError(f"no calibrator is called {calibrator!r}; choose one of: {AUTO}, {', '.join(CALIBRATORS)}")
    codes = CODES[precision]
    if codes is NVFP4 and calibrator not in (AUTO, "max"):
        raise InputError(
            f"--calibrator {calibrator} is for int8 and fp8: NVFP4 scales each block of 16 by its own largest"
        )
    kept = kept or {}
    known = taking(rewritten.module, codes, kept)
    seen = _channels(rewritten, data, known, step)
    chosen = _factors(rewritten, known, seen, codes) if equalising and codes is not NVFP4 else {}
    balanced = equalise(rewritten, chosen)
    histograms = _histograms(balanced, data, _largest(taking(balanced.module, codes, kept), seen, chosen), step)
    candidates = ("max",) if codes is NVFP4 else CALIBRATORS if calibrator == AUTO else (calibrator,)
    rows = len(next(iter(data.values())))
    found = {
        name: Quantisation(
            precision,
            name,
            {source: threshold(name, histogram, codes) for source, histogram in histograms.items()},
            chosen,
            {},
            "",
            rows,
            kept=kept,
        )
        for name in candidates
    }
    sqnr = _tried(balanced, data, found, step)
    best = max(sqnr, key=lambda name: sqnr[name])
    return replace(found[best], sqnr_db=sqnr)


def fake_quantised(rewritten: Rewritten, quantisation: Quantisation) -> fx.GraphModule:
    """The graph (already equalised) with codes at its sites, all else in FP32."""
    return apply(rewritten, plan(rewritten, quantisation.precision, quantisation=quantisation, beside="fp32")).module


def sqnr_db(reference: np.ndarray, output: np.ndarray) -> float:
    """Signal to quantisation noise in decibels; EXACT_DB where nothing differs, or where it could not be told."""
    signal = float((reference.astype(np.float64) ** 2).sum())
    noise = float(((reference.astype(np.float64) - output) ** 2).sum())
    return EXACT_DB if noise == 0 else min(EXACT_DB, 10 * math.log10(max(signal, 1e-300) / noise))


def outputs(module: Callable[..., Any], data: Arrays, inputs: Any) -> np.ndarray:
    """All outputs of a graph over `data`, flattened to (rows, numbers)."""
    parts, count = [], len(next(iter(data.values())))
    with torch.inference_mode():
        for batch in batches(data, inputs):
            leaves = pytree.tree_leaves(module(*batch))
            parts.append(np.concatenate([leaf.float().numpy().reshape(len(leaf), -1) for leaf in leaves], axis=1))
    return np.concatenate(parts)[:count]


def batches(data: Arrays, inputs: Any) -> Iterator[list[torch.Tensor]]:
    """The data in the order and the dtypes of the inputs' specs, BATCH rows at a time, or as many as they say."""
    size = fixed_batch(inputs)
    for rows, _ in chunks(len(next(iter(data.values()))), size or BATCH, size or 1):
        yield [torch.from_numpy(np.ascontiguousarray(data[spec.name][rows])).to(spec.dtype) for spec in inputs]


def some(data: Arrays, count: int) -> Arrays:
    """At most `count` rows, spread evenly."""
    total = len(next(iter(data.values())))
    index = np.arange(min(count, total)) * total // min(count, total)
    return {name: values[index] for name, values in data.items()}


class _Watching(fx.Interpreter):
    """Runs a graph and shows some nodes' values to `look`."""

    def __init__(self, module: fx.GraphModule, names: set[str], look: Callable[[str, torch.Tensor], None]) -> None:
        super().__init__(module)
        self.names, self.look = names, look

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.names:
            self.look(n.name, result)
        return result


def _watch(
    rewritten: Rewritten, data: Arrays, look: Mapping[str, Callable[[torch.Tensor], None]], phase: str, step: Step
) -> None:
    count = len(next(iter(data.values())))
    watching = _Watching(rewritten.module, set(look), lambda name, value: look[name](value))
    done = 0
    with torch.inference_mode():
        for batch in batches(data, rewritten.inputs):
            watching.run(*batch)
            done += len(batch[0])
            step(phase, done, count)


class _Seen:
    """Accumulates what passes by at a site's activation."""

    def __init__(self, site: Site) -> None:
        self.site, self.count = site, 0
        self.largest, self.power = torch.zeros(()), torch.zeros((), dtype=torch.float64)

    def __call__(self, value: torch.Tensor) -> None:
        dims = [dim % value.dim() for dim in self.site.channels]
        rest = [dim for dim in range(value.dim()) if dim not in dims]
        magnitudes = value.abs()
        self.largest = torch.maximum(self.largest, magnitudes.amax(rest))
        self.power = self.power + (magnitudes**2).sum(rest).double()
        self.count += math.prod(value.shape[dim] for dim in rest)

    def channels(self) -> Channels:
        return Channels(self.largest.double().numpy().reshape(-1), self.power.numpy().reshape(-1) / self.count)


def _channels(rewritten: Rewritten, data: Arrays, known: Mapping[str, Site], step: Step) -> dict[str, Channels]:
    """What each site's activation is by input channel."""
    graph = {node.name: node for node in rewritten.module.graph.nodes}
    seen = {name: _Seen(site) for name, site in known.items()}
    readers: dict[str, list[_Seen]] = {}
    for name, one in seen.items():
        readers.setdefault(graph[name].args[one.site.activation].name, []).append(one)

    def look(value: torch.Tensor, ones: list[_Seen]) -> None:
        for one in ones:
            one(value)

    looks = {name: (lambda value, ones=ones: look(value, ones)) for name, ones in readers.items()}
    _watch(rewritten, data, looks, "ranges of channels", step)
    found = {name: one.channels() for name, one in seen.items()}
    for name, channels in found.items():
        if not np.isfinite(channels.largest).all():
            raise InputError(
                f"the values that {seen[name].site.module or name!r} reads are not finite on the calibration data: "
                "check the data and the checkpoint"
            )
    return found


def _factors(
    rewritten: Rewritten, known: Mapping[str, Site], seen: Mapping[str, Channels], codes: Codes
) -> dict[str, tuple[float, ...]]:
    graph = {node.name: node for node in rewritten.module.graph.nodes}
    chosen = {}
    for name, site in known.items():
        matrix = weight(rewritten.module, graph[name].args[site.weight])
        assert matrix is not None
        if (s := factors(matrix, site, seen[name], codes)) is not None:
            chosen[name] = tuple(map(float, s))
    return chosen


def _largest(
    known: Mapping[str, Site], seen: Mapping[str, Channels], chosen: Mapping[str, Sequence[float]]
) -> dict[str, float]:
    """The largest magnitude of every source after equalisation, which needs no second look at the data."""
    largest: dict[str, float] = {}
    for name, site in known.items():
        reached = seen[name].largest / np.asarray(chosen.get(name, 1.0))
        largest[site.source] = max(largest.get(site.source, 0.0), float(reached.max()))
    return largest


def _histograms(balanced: Rewritten, data: Arrays, largest: Mapping[str, float], step: Step) -> dict[str, Histogram]:
    counts = {name: torch.zeros(BINS, dtype=torch.float64) for name in largest}

    def look(name: str, value: torch.Tensor) -> None:
        if largest[name] > 0:
            # A float32 histogram holds counts up to 2**24, more than a batch has in one bin.
            counts[name] += torch.histc(value.float().abs().clamp(max=largest[name]), BINS, 0.0, largest[name]).double()

    looks = {name: (lambda value, name=name: look(name, value)) for name in largest}
    _watch(balanced, data, looks, "histograms", step)
    return {name: Histogram(counts[name].numpy(), largest[name]) for name in largest}


def _tried(balanced: Rewritten, data: Arrays, found: Mapping[str, Quantisation], step: Step) -> dict[str, float]:
    rows = some(data, TRIED_ROWS)
    expected = outputs(balanced.module, rows, balanced.inputs)
    sqnr = {}
    for done, (name, quantisation) in enumerate(found.items(), 1):
        module = fake_quantised(balanced, quantisation)
        sqnr[name] = sqnr_db(expected, outputs(module, rows, balanced.inputs))
        step("trying calibrators", done, len(found))
    return sqnr
