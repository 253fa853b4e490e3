"""The rows of a matrix by network, each with what of it may be compared with others.

Two times compare only where they are of one machine, of the same part of it, on as many threads; two accuracies only
where they are of the same data.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mlpdeploy.evidence.documents.matrix import Matrix, Row, Step
from mlpdeploy.evidence.latency.machine import GPU
from mlpdeploy.evidence.proof.accuracy import Share

BUILD, VERIFY, EVALUATE = "build", "verify", "evaluate"
TIMED = ("bench", "regress")
"""Commands of a job that measure latency; a row's is of the first of them."""


@dataclass(frozen=True)
class Place:
    """Where a latency was measured: a machine by its number from 1, and what of it computed, on how many threads.

    `threads` is None where a GPU computed, or where it is not known.
    """

    machine: int
    device: str
    threads: int | None

    @property
    def text(self) -> str:
        """Its device in words: `Example 9000, 2 threads`."""
        return self.device if self.threads is None else f"{self.device}, {self.threads} thread{'s'[: self.threads > 1]}"


@dataclass(frozen=True)
class Accuracy:
    """How right an engine is, of what: a share of right answers, or else the engine's largest relative error.

    `images` are those that a share is of, 0 where it is none or that is not known.
    """

    value: float
    of: str
    share: bool
    images: int = 0

    @property
    def points(self) -> float:
        """How many points to either side the 95 % interval of a share reaches; 0 where that is not known."""
        if not self.images or self.value > 1:
            return 0.0
        low, high = Share(round(self.value * self.images), self.images).interval
        return 50 * (high - low)

    @property
    def rank(self) -> float:
        """The higher, the more accurate, among those that are `of` the same."""
        return self.value if self.share else -self.value

    @property
    def text(self) -> str:
        """Its value in words."""
        return f"{self.value:.2%}" if self.share else f"{self.value:.1e}" if self.value else "0"


@dataclass(frozen=True)
class Engine:
    """A row; `label` tells it from the others of its network, `short` does so in a chart of that network alone.

    `place` is where it was timed, None where nowhere.
    """

    row: Row
    label: str
    short: str
    place: Place | None
    accuracy: Accuracy | None

    @property
    def times(self) -> Mapping[str, float]:
        """Its median in milliseconds by batch size; nothing where it was not timed."""
        return self.row.facts.latency_ms if self.place is not None else {}

    @property
    def verified(self) -> bool:
        """Whether the engine was compared with its network."""
        return self.row.facts.of_budget is not None


@dataclass(frozen=True)
class Network:
    """The engines of one network, in the order of the plan."""

    name: str
    engines: tuple[Engine, ...]

    def places(self) -> list[tuple[Place, str]]:
        """Where its engines were timed, and at which batch size."""
        found = dict.fromkeys(one.place for one in self.engines if one.place is not None)
        return [(place, batch) for place in found for batch in self._batches(place)]

    def _batches(self, place: Place) -> list[str]:
        return in_order(batch for one in self.engines if one.place == place for batch in one.times)

    @property
    def shares(self) -> bool:
        """Whether its engines are compared by shares of right answers, as where any is known, or else by errors."""
        return any(one.accuracy is not None and one.accuracy.share for one in self.engines)

    def bases(self) -> list[str]:
        """What the accuracies are of that its engines are compared by."""
        known = (one.accuracy for one in self.engines if one.accuracy is not None)
        return list(dict.fromkeys(one.of for one in known if one.share == self.shares))


@dataclass(frozen=True)
class Overview:
    """The networks of a matrix, and the machines that did its jobs, which places number from 1."""

    networks: tuple[Network, ...]
    machines: tuple[Mapping[str, Any], ...]

    @cached_property
    def engines(self) -> list[Engine]:
        """All engines, in the order of the networks."""
        return [one for network in self.networks for one in network.engines]

    @cached_property
    def places(self) -> list[Place]:
        """Where engines were timed."""
        return list(dict.fromkeys(one.place for one in self.engines if one.place is not None))


def overview(document: Matrix) -> Overview:
    """The rows of a document, arranged."""
    machines: list[Mapping[str, Any]] = []
    groups: dict[str, list[Row]] = {}
    for row in document.rows:
        groups.setdefault(str(row.selection["name"]), []).append(row)
        if row.machine is not None and row.machine not in machines:
            machines.append(row.machine)
    networks = (Network(name, _engines(rows, machines)) for name, rows in groups.items())
    return Overview(tuple(networks), tuple(machines))


def in_order(batches: Any) -> list[str]:
    """Batch sizes by size, each once."""
    return sorted(set(batches), key=lambda text: (int(text) if text.isdecimal() and len(text) < 20 else math.inf, text))


def accuracy_of(row: Row) -> Accuracy | None:
    """A row's accuracy: top-1 where it was evaluated, else the error that verify found; None where neither is known."""
    asked, found = _asked(row, EVALUATE), _found(row, EVALUATE)
    if row.facts.top1 is not None:
        images = int(number(found.get("images")) or 0)
        count = f" of {images} images" if images else ""
        told = [str(asked[name]) for name in ("data", "class-map") if name in asked]
        return Accuracy(row.facts.top1, f"top-1{count}{' of ' * bool(told)}{', '.join(told)}", True, images)
    found = _found(row, VERIFY)
    if (error := number(found.get("error"))) is not None:
        return Accuracy(error, f"largest relative error on {found.get('inputs', 'unknown')} inputs", share=False)
    return None


def place_of(row: Row, machine: int) -> Place | None:
    """Where a row's latencies were measured; None where there are none, or it is not known on which machine."""
    if not row.facts.latency_ms or row.machine is None:
        return None
    found = next((step.found for step in row.steps if step.name in TIMED and step.found), {})
    gpu = row.machine.get("gpu") if found.get("device") == GPU else None
    threads = None if gpu is not None else number(found.get("threads"))
    device = str(gpu.get("name", "a GPU") if gpu is not None else row.machine["cpu"])
    return Place(machine, device, None if threads is None else int(threads))


def backend_of(row: Row) -> str:
    """The backend that built an engine; where none did, the one that was asked for."""
    return str(_found(row, BUILD).get("backend") or row.selection["backend"])


def ended_at(row: Row) -> Step | None:
    """The command that a job failed at, or that it was ended in; None where there is none."""
    return next((step for step in row.steps if step.error is not None), None)


def number(value: Any) -> float | None:
    """A finite number that is not negative, as a document of anybody's may hold one; None of all else."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
    return float(value) if usable else None


def _found(row: Row, name: str) -> Mapping[str, Any]:
    return next((step.found for step in row.steps if step.name == name), {})


def _asked(row: Row, name: str) -> Mapping[str, Any]:
    return next((step.asked for step in row.steps if step.name == name), {})


def _engines(rows: Sequence[Row], machines: Sequence[Mapping[str, Any]]) -> tuple[Engine, ...]:
    precisions = [str(row.selection["precision"]) for row in rows]
    backends = [backend_of(row) for row in rows]
    usual = [f"{precision} {backend}" for precision, backend in zip(precisions, backends, strict=True)]
    often = Counter(usual)
    labels = [
        label if often[label] == 1 else row.job.removeprefix(f"{row.selection['name']} ")
        for label, row in zip(usual, rows, strict=True)
    ]
    short = precisions if len({*backends}) == 1 and len({*precisions}) == len(rows) else labels
    numbers = [0 if row.machine is None else machines.index(row.machine) + 1 for row in rows]
    return tuple(
        Engine(row, label, name, place_of(row, machine), accuracy_of(row))
        for row, label, name, machine in zip(rows, labels, short, numbers, strict=True)
    )
