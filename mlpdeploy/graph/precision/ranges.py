"""The range pass: what the values of a network reach, over rows that are ordinary and rows that are not.

The network runs in FP32 over random rows and those that its user gave, then over flat, black and white ones and one of
one hot element, then over one that is a hundred times larger (see `extremes`). What is no finite number on extreme rows
(0 / 0 of a black image) is the network's own and says nothing about precision.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.overrides import TorchFunctionMode

from mlpdeploy.graph.kinds import packet, root_of
from mlpdeploy.graph.operation import Operation
from mlpdeploy.graph.operations import OPERATIONS
from mlpdeploy.graph.precision.extremes import LARGE, extremes
from mlpdeploy.graph.rewrite import Rewritten
from mlpdeploy.graph.tracing.rows import chunks, fixed_batch
from mlpdeploy.graph.tracing.trace import TensorSpec

aten = torch.ops.aten

ROWS = 2
"""Random rows, and those of the user's that are run as well."""

MEANS = {aten.mean, aten.adaptive_avg_pool2d}
VARIANCES = {aten.var, aten.std}


@dataclass(frozen=True)
class Peaks:
    """By node name, the largest magnitude, weights and inputs included.

    `inside`: the largest number formed on the way to a value, where that is another one: the sum that a mean divides,
    the squares below a root, the products in one of our operations.
    """

    values: Mapping[str, float]
    inside: Mapping[str, float]

    def of(self, node: fx.Node) -> float:
        """The largest magnitude of a node; 0 where it has none."""
        return self.values.get(node.name, 0.0)


@dataclass(frozen=True)
class Ranges:
    """What the values reach over all `usual` rows: those but the one that is a hundred times larger.

    `largest`: by node name, the largest magnitude over all rows. `lows`: by name, of the nodes that were watched, the
    smallest magnitude that is not 0; of a root, its power.
    """

    usual: Peaks
    largest: Mapping[str, float]
    lows: Mapping[str, float]


def measure(rewritten: Rewritten, samples: Mapping[str, np.ndarray] | None, watched: Collection[fx.Node]) -> Ranges:
    """Run the network over random rows, `samples` (arrays by input name, of which the first few count) and extremes."""
    rng = np.random.default_rng(0)
    given = [{spec.name: spec.draw(ROWS, rng) for spec in rewritten.inputs}]
    if samples:
        given.append({name: rows[:ROWS] for name, rows in samples.items()})
    ordinary = {spec.name: np.concatenate([rows[spec.name] for rows in given]) for spec in rewritten.inputs}
    found = extremes(rewritten.inputs, rng)
    large = [place for place, name in enumerate(found.names) if name == LARGE]
    others = [place for place, name in enumerate(found.names) if name != LARGE]
    run = _Run(rewritten.module, {node.name for node in watched}, fixed_batch(rewritten.inputs))
    with single_thread(), torch.no_grad():
        run.over(_tensors(rewritten.inputs, ordinary))
        run.over_extremes(_tensors(rewritten.inputs, {name: rows[others] for name, rows in found.arrays.items()}))
        usual = Peaks(dict(run.peaks), dict(run.inside))
        run.over_extremes(_tensors(rewritten.inputs, {name: rows[large] for name, rows in found.arrays.items()}))
    return Ranges(usual, run.peaks, run.lows)


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

    def __init__(self, module: fx.GraphModule, watched: Collection[str], fixed: int | None) -> None:
        super().__init__(module)
        self.watched, self.fixed = watched, fixed
        self.finite_only = False
        self.peaks: dict[str, float] = {}
        self.inside: dict[str, float] = {}
        self.lows: dict[str, float] = {}

    def over(self, inputs: Sequence[torch.Tensor]) -> None:
        """Run over rows, all at once or as many as the network takes."""
        for index, _ in chunks(len(inputs[0]), self.fixed or len(inputs[0]), self.fixed or 1):
            self.run(*(values[index] for values in inputs))

    def over_extremes(self, inputs: Sequence[torch.Tensor]) -> None:
        """Run over extreme rows; one that the network itself refuses (an index made of 0 / 0) is left out."""
        self.finite_only = True
        for row in range(len(inputs[0])):
            with contextlib.suppress(RuntimeError, IndexError, ValueError):
                self.over([values[row : row + 1] for values in inputs])

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op != "get_attr" or n.name not in self.peaks:
            for value in result if isinstance(result, list | tuple) else [result]:
                if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
                    self.see(n, value.detach().abs())
        return result

    def see(self, node: fx.Node, magnitudes: torch.Tensor) -> None:
        magnitudes = self.finite(magnitudes)
        peak = float(magnitudes.amax())
        self.peaks[node.name] = _larger(self.peaks.get(node.name, 0.0), peak)
        if (formed := self.formed(node, peak, magnitudes.numel())) is not None:
            self.inside[node.name] = _larger(self.inside.get(node.name, 0.0), formed)
        if node.name in self.watched and bool((some := magnitudes > 0).any()):
            low = power(float(magnitudes[some].amin()), root_of(node))
            self.lows[node.name] = min(self.lows.get(node.name, low), low)

    def finite(self, magnitudes: torch.Tensor) -> torch.Tensor:
        """Without infinity, which is a mask's, or the quotient of 0: every precision has it."""
        return magnitudes.nan_to_num(0.0 if self.finite_only else math.nan, 0.0, 0.0)

    def formed(self, node: fx.Node, peak: float, count: int) -> float | None:
        """The largest number on the way to `count` values that reach `peak`, where it is another one."""
        if (operation := OPERATIONS.get(node.target)) is not None and operation.steps:
            return self._meant(node, operation)
        kind, root = packet(node), root_of(node)
        formed = power(peak, root)
        if kind not in MEANS | VARIANCES:
            return formed if root != 1 else None
        terms: float = self.env[node.all_input_nodes[0]].numel() / count
        # A variance is put together from a mean of squares and the number of terms, each in the file's precision.
        return max(formed * terms, terms) if kind in VARIANCES else formed * terms

    def _meant(self, node: fx.Node, operation: Operation) -> float:
        """What one of our operations reaches on the way, where its meaning, step by step, rounds it."""
        operands: Any = fx.map_arg(node.args, self.env.__getitem__)
        with _Steps() as steps:
            operation.meaning(*operands)
        return _larger(*(float(self.finite(one.abs()).amax()) for one in steps.results))


class _Steps(TorchFunctionMode):
    """Keeps what each function of PyTorch that runs meanwhile computes."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            self.results.append(result)
        return result


def power(number: float, exponent: float) -> float:
    """A power, infinite where it is beyond what Python computes."""
    try:
        return math.pow(number, exponent)
    except OverflowError:
        return math.inf


def _larger(*numbers: float) -> float:
    """The largest one; not a number where one of them is none."""
    return max(numbers, key=lambda number: (number != number, number))
