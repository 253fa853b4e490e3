"""The best engine of each network: within limits that the user gives, the fastest, most accurate and smallest of all.

Only engines whose jobs are done are chosen from. Times are held beside each other at one place and one batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mlpdeploy.evidence.report.matrix.engines import Engine, Network, Overview, Place
from mlpdeploy.system.text import megabytes

FASTEST = "fastest"


@dataclass(frozen=True)
class Limits:
    """What an engine must keep to: milliseconds at most, a share of right answers at least, bytes at most."""

    max_ms: float | None = None
    min_top1: float | None = None
    max_bytes: float | None = None

    def __bool__(self) -> bool:
        return (self.max_ms, self.min_top1, self.max_bytes) != (None, None, None)

    @property
    def text(self) -> str:
        """The limits in words."""
        parts = (
            None if self.max_ms is None else f"at most {self.max_ms:g} ms",
            None if self.min_top1 is None else f"top-1 of at least {100 * self.min_top1:g}%",
            None if self.max_bytes is None else f"at most {megabytes(self.max_bytes)} MB",
        )
        return ", ".join(part for part in parts if part is not None)

    @property
    def sentence(self) -> str:
        """The limits as a sentence begins."""
        return f"{self.text[:1].upper()}{self.text[1:]}"

    @property
    def wanted(self) -> str:
        """What is best among the engines that keep to them."""
        return FASTEST if self.min_top1 is not None and self.max_ms is None else "most accurate"


@dataclass(frozen=True)
class Best:
    """The best engines of a network at one place and batch size; both are None where no engine of it was timed.

    `within` is the best that keeps to the limits. `why` says why there is none, and which engines were not judged.
    """

    network: str
    place: Place | None
    batch: str | None
    within: Engine | None
    why: str
    fastest: Engine | None
    accurate: Engine | None
    smallest: Engine | None

    @property
    def known(self) -> bool:
        """Whether it says anything."""
        return bool(self.why) or any((self.within, self.fastest, self.accurate, self.smallest))

    def ms(self, engine: Engine) -> float | None:
        """The time of an engine here; None where it was not timed here."""
        return _ms(engine, self.place, self.batch)

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON values, engines by the names of their jobs."""
        ends = {name: getattr(self, name) for name in ("within", "fastest", "accurate", "smallest")}
        where = None if self.place is None else {"device": self.place.device, "threads": self.place.threads}
        names = {name: None if one is None else one.row.job for name, one in ends.items()}
        return {"network": self.network, "place": where, "batch": self.batch, **names, "why": self.why}


def best(seen: Overview, limits: Limits) -> tuple[Best, ...]:
    """The best engines of every network, at each place and batch size at which it was timed."""
    found = []
    for network in seen.networks:
        places: list[tuple[Place | None, str | None]] = [*network.places()]
        found += [_Case(network, place, batch, limits).best() for place, batch in places or [(None, None)]]
    return tuple(found)


@dataclass(frozen=True)
class _Case:
    """One network at one place and batch size, None where no engine of it was timed."""

    network: Network
    place: Place | None
    batch: str | None
    limits: Limits

    def best(self) -> Best:
        timed = [one for one in self.network.engines if one.row.done and (self.place is None or self.ms(one))]
        within, why = self.within(timed) if self.limits else (None, "")
        return Best(
            self.network.name, self.place, self.batch, within, why, self.fastest(timed), self.most_accurate(timed),
            smallest=_first([one for one in timed if one.row.facts.engine_bytes is not None], _small),
        )  # fmt: skip

    def ms(self, engine: Engine) -> float | None:
        return _ms(engine, self.place, self.batch)

    def within(self, engines: Sequence[Engine]) -> tuple[Engine | None, str]:
        """The best that keeps to the limits, and what is to be said of the choice."""
        if not any(one.row.done for one in self.network.engines):
            return None, "no engine of it is done"
        if self.limits.max_ms is not None and self.place is None:
            return None, "no engine of it was timed"
        judged = [one for one in engines if self.judged(one)]
        left = [one for one in engines if one not in judged]
        untimed = [one for one in self.network.engines if self.place and one.row.done and one.place is None]
        unknown = f"not measured, so not judged: {_names([*left, *untimed])}" if left or untimed else ""
        fit = [one for one in judged if self.keeps(one)]
        if not fit:
            return None, "; ".join(filter(None, [f"none of {len(judged)} keeps to it" * bool(judged), unknown]))
        found = self.fastest(fit) if self.limits.wanted == FASTEST else self.most_accurate(fit)
        if found is None:
            lacks = "timed" if self.limits.wanted == FASTEST else "measured for an accuracy that compares"
            return None, f"{_names(fit)}: within the limits, and not {lacks}"
        return found, unknown

    def judged(self, engine: Engine) -> bool:
        """Whether all that is limited is known of it, beside its time."""
        facts = engine.row.facts
        return not (
            (self.limits.min_top1 is not None and facts.top1 is None)
            or (self.limits.max_bytes is not None and facts.engine_bytes is None)
        )

    def keeps(self, engine: Engine) -> bool:
        limits, facts = self.limits, engine.row.facts
        return (
            (limits.max_ms is None or (self.ms(engine) or 0.0) <= limits.max_ms)
            and (limits.min_top1 is None or (facts.top1 or 0.0) >= limits.min_top1)
            and (limits.max_bytes is None or (facts.engine_bytes or 0) <= limits.max_bytes)
        )

    def fastest(self, engines: Sequence[Engine]) -> Engine | None:
        return None if self.place is None else _first(engines, lambda one: -(self.ms(one) or 0.0))

    def most_accurate(self, engines: Sequence[Engine]) -> Engine | None:
        """The most accurate, of equals the faster; None where accuracies are not known, or not of the same."""
        bases = self.network.bases()
        known = [one for one in engines if one.accuracy is not None and [one.accuracy.of] == bases]
        return _first(known, lambda one: (_rank(one), -(self.ms(one) or 0.0), _small(one)))


def _first(engines: Sequence[Engine], rank: Callable[[Engine], Any]) -> Engine | None:
    """The engine that ranks highest, of equals the first of the plan."""
    return max(engines, key=rank, default=None)


def _rank(engine: Engine) -> float:
    assert engine.accuracy is not None
    return engine.accuracy.rank


def _small(engine: Engine) -> float:
    return -float(engine.row.facts.engine_bytes or 0)


def _ms(engine: Engine, place: Place | None, batch: str | None) -> float | None:
    return engine.times.get(batch) if batch is not None and engine.place == place else None


def _names(engines: Sequence[Engine]) -> str:
    return ", ".join(one.label for one in engines)
