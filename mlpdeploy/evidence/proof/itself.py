"""The network against itself: before anything is made of it, it must be one function of each row.

An engine computes the same for the same row, whenever it runs and whoever else is in the batch. A network that draws
random numbers, counts its calls, mixes the rows of a batch or loses the batch axis at batch 1 does not, and one that
its trace does not follow is not the one that is compiled. `check` says so at build, by a few small calls in float32;
where these cannot tell a fault from rounding, float64 decides. What `culprit` finds ends each line.
"""

from __future__ import annotations

import copy
import math
import pickle
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import nn

from mlpdeploy.engine.runner import Arrays
from mlpdeploy.errors import NetworkError
from mlpdeploy.evidence.proof import culprit
from mlpdeploy.evidence.proof.compare import row_errors, usual
from mlpdeploy.evidence.proof.edges import edges_of
from mlpdeploy.evidence.proof.runs import SINGLE, Outputs, float64_run, in_batches, module_run
from mlpdeploy.evidence.proof.wide import widened
from mlpdeploy.graph.precision.ranges import single_thread
from mlpdeploy.graph.tracing.place import apart, blame
from mlpdeploy.graph.tracing.trace import Traced
from mlpdeploy.system.guest import one_line

SLOW = 0.5
"""Seconds of a call from which on it takes all threads; those of small operations wait for each other."""

ROWS = 3
"""Rows of the batch in which a row meets others; each is run alone too."""

ROUNDED = 1e-5
"""Two ways of computing a row may differ by this in float32; beyond it float64 decides."""
EXACT = 1e-9
"""What they may differ by in float64."""
SAME = 1e-6
"""What the outputs of two rows may differ by and be the same."""
ORDER = (1, 2, 0)
"""The rows of a batch, none in its place."""
UNSURE = 1e-3
"""What they may differ by in float32 where the network cannot run in float64."""
LOW = 0.05
"""What they may differ by where the network itself computes in half precision."""


def check(network: nn.Module, traced: Traced, seed: int) -> tuple[str, ...]:
    """Find a network the same whenever it runs, row by row, and as it was traced; notes on what it gives.

    Its weights, its attributes and the random state stay as they are. Raises NetworkError, in one line, where it is not
    what an engine can compute.
    """
    unknown = [spec.name for spec in traced.inputs if not spec.dtype.is_floating_point and spec.low is None]
    if unknown:
        return (f"nothing says which values input {unknown[0]!r} can have, so the network was not tried",)
    with _same_random_state() as drawn:
        with single_thread():
            began = time.monotonic()
            trial = _Trial(network, traced, seed)
        slow = time.monotonic() - began > SLOW
        with nullcontext() if slow else single_thread():
            trial.require_repeatable(drawn)
            trial.require_rows()
            trial.require_trace(drawn)
            return trial.notes()


class _Trial:
    """A network, its trace, rows for it, and what it gave for them first, in a copy that may keep what it likes."""

    def __init__(self, network: nn.Module, traced: Traced, seed: int) -> None:
        self.network, self.traced, self.seed = network, traced, seed
        self.name, self.inputs = type(network).__name__, traced.inputs
        self.names = [spec.name for spec in traced.outputs]
        rng = np.random.default_rng(seed)
        self.rows = {spec.name: spec.draw(ROWS, rng) for spec in self.inputs}
        self.copy = apart(network)
        self.first = self.call(self.rows)

    def call(self, rows: Arrays, where: str = "", network: nn.Module | None = None) -> Outputs:
        """The network in float32."""
        network = self.copy if network is None else network
        try:
            return module_run(network, self.inputs, self.names, torch.float32)(rows)
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            more = f"; {culprit.STATISTICS}" if "more than 1 value per channel" in str(error) else ""
            raise NetworkError(f"{self.name} fails{where}: {one_line(error)}{blame(network, error)}{more}") from error

    def require_repeatable(self, drawn: Callable[[], bool]) -> None:
        """It gives the same when it runs again, in another order of the rows."""
        again = " when it runs again"
        together = self.call(taken(self.rows, ORDER), again)
        tries = culprit.TRIES if drawn() else int(_off(together, taken(self.first, ORDER)) > ROUNDED)
        for _ in range(tries):
            if _off(self.call(self.rows, again), self.first) > ROUNDED:
                raise NetworkError(repeats(self.name, culprit.changed(self.copy, self.inputs, self.rows)))

    def require_rows(self) -> None:
        """Each row gets alone what it got beside others."""
        fresh = apart(self.network)
        alone = [self.call(taken(self.rows, [index]), " at batch 1", fresh) for index in range(ROWS)]
        for name, values in self.first.items():
            expected, found = (1, *values.shape[1:]), alone[0][name].shape
            if found != expected:
                what = f"{self.name} gives {found} instead of {expected} at batch 1"
                raise NetworkError(_said(what, culprit.mixed(self.network, self.inputs, self.rows), culprit.SQUEEZE))
        joined = {name: np.concatenate([one[name] for one in alone]) for name in self.first}
        if self.differs(_off(self.first, joined), self.rows_off):
            raise NetworkError(mixes(self.name, culprit.mixed(self.network, self.inputs, self.rows)))

    def require_trace(self, drawn: Callable[[], bool]) -> None:
        """Its trace computes what it computes, no random numbers decide that, and it is finite."""
        if drawn() and (why := culprit.drawn(self.network, self.traced, self.rows)):
            raise NetworkError(repeats(self.name, why))
        found = module_run(self.traced.module, self.inputs, self.names)(self.rows)
        if self.differs(_off(found, self.first), self.trace_off):
            raise NetworkError(strays(self.name, culprit.strayed(self.network, self.traced, self.rows)))
        for name, values in self.first.items():
            if not np.isfinite(np.asarray(values, dtype=np.float64)).all():
                what = f"{self.name} gives NaN or infinity for ordinary rows in its output {name!r}"
                raise NetworkError(_said(what, culprit.unbounded(self.network, self.traced, self.rows), culprit.GUARD))

    def notes(self) -> tuple[str, ...]:
        run = module_run(self.copy, self.inputs, self.names, torch.float32)
        return (*constants(self.first), *edges_of(run, self.inputs, self.seed).notes())

    def differs(self, error: float, exactly: Callable[[nn.Module], float]) -> bool:
        """Whether an error between two ways of computing it is more than rounding; `exactly` has it in float64."""
        if error <= ROUNDED:
            return False
        if culprit.own_precision(self.traced.module) is not None:
            return error > LOW
        try:
            return exactly(copy.deepcopy(self.network).double()) > EXACT
        except Exception:  # code that insists on float32 cannot run in float64
            return error > UNSURE

    def rows_off(self, wide: nn.Module) -> float:
        """How far the rows of a batch are off from the same rows alone, by the network in float64."""
        alone = in_batches(float64_run(apart(wide), self.inputs, self.names), self.rows, SINGLE)
        return _off(float64_run(wide, self.inputs, self.names)(self.rows), alone)

    def trace_off(self, wide: nn.Module) -> float:
        """How far the trace is off from the network in float64."""
        found = float64_run(widened(self.traced).module, self.inputs, self.names)(self.rows)
        return _off(found, float64_run(wide, self.inputs, self.names)(self.rows))


def repeats(name: str, why: str) -> str:
    """What is said of a network that does not repeat itself; `why` is what `culprit` found."""
    return _said(f"{name} gives something else each time that it runs on the same rows", why, culprit.STATE)


def mixes(name: str, why: str) -> str:
    """What is said of a network whose rows depend on each other."""
    return _said(f"{name} lets a row depend on the others in its batch", why, culprit.COUNT)


def strays(name: str, why: str) -> str:
    """What is said of a network that its trace does not follow."""
    return _said(f"{name} computes something else than its trace", why, culprit.PLAIN)


def constants(outputs: Outputs) -> tuple[str, ...]:
    """Warnings of outputs that are the same for every row."""
    return tuple(
        f"output {name!r} of the network is the same for every input, so agreeing with it proves little; "
        "a classifier whose head starts at zero does this: give a checkpoint"
        for name, values in outputs.items()
        if len(values) > 1
        and values.size
        and values.dtype.kind == "f"
        and _off({name: values}, {name: np.broadcast_to(values[:1], values.shape)}) <= SAME
    )


def _said(what: str, why: str, instead: str) -> str:
    """One line: what is wrong, and which operation it is; where that was not found, what to write `instead`."""
    return f"{what}: {why}" if why else f"{what}; {instead}"


@contextmanager
def _same_random_state() -> Iterator[Callable[[], bool]]:
    """Leave the generators of torch, NumPy and Python as they were; gives whether any was drawn from so far."""
    numbers, numpys, pythons = torch.random.get_rng_state(), np.random.get_state(), random.getstate()

    def drawn() -> bool:
        same = torch.equal(torch.random.get_rng_state(), numbers) and random.getstate() == pythons
        return not same or pickle.dumps(np.random.get_state()) != pickle.dumps(numpys)

    try:
        yield drawn
    finally:
        torch.random.set_rng_state(numbers)
        np.random.set_state(numpys)
        random.setstate(pythons)


def taken(arrays: Arrays, order: Iterable[int]) -> dict[str, np.ndarray]:
    """Rows of every array."""
    return {name: values[list(order)] for name, values in arrays.items()}


def _off(found: Outputs, expected: Outputs) -> float:
    """The largest error of a row; infinite where shapes differ, or one has a NaN or infinity that the other has not."""
    worst = 0.0
    for name, values in expected.items():
        if name not in found or found[name].shape != values.shape:
            return math.inf
        a, b = (np.asarray(one, dtype=np.float64) for one in (found[name], values))
        odd = ~(np.isfinite(a) & np.isfinite(b))
        if not np.array_equal(a[odd], b[odd], equal_nan=True):
            return math.inf
        a, b = (np.where(odd, 0.0, one) for one in (a, b))
        if a.size:
            worst = max(worst, float(row_errors(a, b, usual({name: b}, name)).max()))
    return worst
