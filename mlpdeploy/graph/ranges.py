"""The range pass: what the values of a network reach, over rows that are ordinary and rows that are not.

The network runs in FP32 over random rows and those that its user gave, then over the extreme ones (see `extremes`). What
is no finite number there (0 / 0 of a black image) is the network's own and says nothing about precision.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx

from mlpdeploy.graph.extremes import extremes
from mlpdeploy.graph.kinds import packet, takes_root
from mlpdeploy.graph.rewrite import Rewritten
from mlpdeploy.graph.trace import TensorSpec

aten = torch.ops.aten

ROWS = 2
"""Random rows, and those of the user's that are run as well."""

MEANS = {aten.mean, aten.adaptive_avg_pool2d}
VARIANCES = {aten.var, aten.std}


@dataclass(frozen=True)
class Ranges:
    """By node name, over all rows.

    `peaks`: the largest magnitude, weights and inputs included; `usual`: that over the ordinary rows alone. `inside`: the largest number formed on the way to a
    value, where that is another one: the sum that a mean divides, the squares below a root. `lows`: the smallest
    magnitude that is not 0, of the nodes that were watched; the square of a root's.
    """

    peaks: Mapping[str, float] = field(default_factory=dict)
    usual: Mapping[str, float] = field(default_factory=dict)
    inside: Mapping[str, float] = field(default_factory=dict)
    lows: Mapping[str, float] = field(default_factory=dict)


def measure(rewritten: Rewritten, samples: Mapping[str, np.ndarray] | None, watched: Collection[fx.Node]) -> Ranges:
    """Run the network over random rows, `samples` (arrays by input name, of which the first few count) and extremes."""
    rng = np.random.default_rng(0)
    given = [{spec.name: spec.draw(ROWS, rng) for spec in rewritten.inputs}]
    if samples is not None:
        given.append({name: rows[:ROWS] for name, rows in samples.items()})
    ordinary = {spec.name: np.concatenate([rows[spec.name] for rows in given]) for spec in rewritten.inputs}
    run = _Run(rewritten.module, {node.name for node in watched})
    with single_thread(), torch.no_grad():
        run.over(_tensors(rewritten.inputs, ordinary), finite_only=False)
        usual = dict(run.peaks)
        run.over(_tensors(rewritten.inputs, extremes(rewritten.inputs, rng).arrays), finite_only=True)
    return Ranges(run.peaks, usual, run.within, run.lows)


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """Run PyTorch on one thread: small operations, whose threads wait for each other where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tensors(specs: Sequence[TensorSpec], arrays: Mapping[str, np.ndarray]) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(arrays[spec.name])).to(spec.dtype) for spec in specs]


class _Run(fx.Interpreter):
    """Runs the network, and keeps what its values reach."""

    def __init__(self, module: fx.GraphModule, watched: Collection[str]) -> None:
        super().__init__(module)
        self.watched = watched
        self.peaks: dict[str, float] = {}
        self.within: dict[str, float] = {}
        self.lows: dict[str, float] = {}

    def over(self, inputs: Sequence[torch.Tensor], finite_only: bool) -> None:
        self.finite_only = finite_only
        self.run(*inputs)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op != "get_attr" or n.name not in self.peaks:
            for value in result if isinstance(result, list | tuple) else [result]:
                if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
                    self.see(n, value.detach().abs())
        return result

    def see(self, node: fx.Node, magnitudes: torch.Tensor) -> None:
        if self.finite_only:
            magnitudes = magnitudes.nan_to_num(0.0, 0.0, 0.0)
        peak = float(magnitudes.amax())
        self.peaks[node.name] = _larger(self.peaks.get(node.name, 0.0), peak)
        if (formed := self.formed(node, peak, magnitudes.numel())) is not None:
            self.within[node.name] = _larger(self.within.get(node.name, 0.0), formed)
        if node.name in self.watched and bool((some := magnitudes > 0).any()):
            low = float(magnitudes[some].amin())
            low = low * low if takes_root(node) else low
            self.lows[node.name] = min(self.lows.get(node.name, low), low)

    def formed(self, node: fx.Node, peak: float, count: int) -> float | None:
        """The largest number on the way to `count` values that reach `peak`, where it is another one."""
        kind, square = packet(node), peak * peak if takes_root(node) else peak
        if kind not in MEANS | VARIANCES:
            return square if takes_root(node) else None
        terms = self.env[node.all_input_nodes[0]].numel() / count
        # A variance is put together from a mean of squares and the number of terms, each in the file's precision.
        return max(square * terms, terms) if kind in VARIANCES else square * terms


def _larger(first: float, second: float) -> float:
    """The larger one; not a number where one of them is none."""
    return second if second != second or second > first else first
