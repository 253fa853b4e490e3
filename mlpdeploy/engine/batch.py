"""The batch sizes that an engine is built for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Batch:
    """The batch sizes an engine accepts, and the one that it is tuned for.

    `profiles` are TensorRT's optimisation profiles where there are several: (min, opt, max) of each, which together
    leave no size out; `opt` is then the largest of theirs.
    """

    min: int
    opt: int
    max: int
    profiles: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "profiles", tuple((low, opt, high) for low, opt, high in self.profiles))

    @classmethod
    def of(cls, profiles: Sequence[tuple[int, int, int]]) -> Batch:
        """What these profiles hold together."""
        lows, usual, highs = zip(*profiles, strict=True)
        return cls(min(lows), max(usual), max(highs), tuple(profiles) if len(profiles) > 1 else ())

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Batch:
        """What an engine was built for, of the facts of its build."""
        low, opt, high = facts["batch"]
        return cls(low, opt, high, facts.get("profiles", ()))

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON values; `Batch(**fields)` is the same again."""
        return {"min": self.min, "opt": self.opt, "max": self.max, **self.several()}

    def several(self) -> dict[str, Any]:
        """The profiles as a JSON field, where there are several."""
        return {"profiles": [list(one) for one in self.profiles]} if self.profiles else {}

    @property
    def usual(self) -> int:
        """The place of the profile that `opt` is of."""
        return [opt for _, opt, _ in self.each].index(self.opt)

    @property
    def each(self) -> tuple[tuple[int, int, int], ...]:
        """The profiles, also where there is one."""
        return self.profiles or ((self.min, self.opt, self.max),)

    @property
    def text(self) -> str:
        """As it is asked for: MIN:OPT:MAX, with commas between several."""
        return ",".join(":".join(map(str, one)) for one in self.each)

    @property
    def told(self) -> str:
        """In words."""
        usual = sorted({opt for _, opt, _ in self.each})
        words = f"{', '.join(map(str, usual[:-1]))} and {usual[-1]}" if len(usual) > 1 else str(usual[0])
        several = f", {len(self.profiles)} optimisation profiles" if self.profiles else ""
        return f"{self.min} to {self.max}, tuned for {words}{several}"

    def up_to_opt(self) -> Batch:
        """Without the sizes above the one that it is tuned for."""
        return Batch.of([(low, opt, min(high, self.opt)) for low, opt, high in self.each])

    def sizes(self) -> tuple[int, ...]:
        """The distinct sizes to check, ascending."""
        return tuple(sorted({size for one in self.each for size in one}))
