"""A workshop and a judge for searches of which engines are only names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from mlpdeploy.artifact.decisions import KEPT, LEFT_OUT, NO_BETTER, PUT_IN
from mlpdeploy.errors import BuildError
from mlpdeploy.progress import Stages
from mlpdeploy.search import _Search
from mlpdeploy.search.judging import Judgement
from mlpdeploy.search.variants import Change, Unchanged, Variant
from mlpdeploy.selection import Selection

DEFAULT = Selection("mixer_s32", "fp32", "onnxruntime", "1")
# What an engine costs without a rule, or with one more: some help, some hurt, and merge_reshapes hurts a lot.
COSTS = {"remove_identities": 0.98, "pick_parts": 0.99, "fold_affine": 1.2, "gather_shifts": 1.0, "merge_reshapes": 0.9}


def change(name: str, how: str = LEFT_OUT) -> Change:
    return Change(name, how, 1)


@dataclass
class Shop:
    """Makes variants that are their selection; `broken` cannot be made, `same` make no other file."""

    broken: tuple[str, ...] = ()
    same: tuple[str, ...] = ()
    made: list[Selection] = field(default_factory=list)
    there: list[Selection] = field(default_factory=list)

    def make(self, selection: Selection, unlike: Variant | None = None) -> Any:
        names = {*selection.disabled_rules, *selection.enabled_rules}
        if names & {*self.broken}:
            raise BuildError("the engine refuses\nmuch more")
        if names & {*self.same}:
            raise Unchanged("it makes no other file")
        self.made.append(selection)
        self.there.append(selection)
        return SimpleNamespace(selection=selection)

    def remove(self, variant: Variant) -> None:
        self.there.remove(variant.selection)


class Scales:
    """Judges by COSTS; each glance and decision takes a second of the clock."""

    def __init__(self) -> None:
        self.now, self.decided, self.ends = 0.0, list[Selection](), list[float]()

    def cost(self, variant: Any) -> float:
        cost = 1.0
        for name in (*variant.selection.disabled_rules, *variant.selection.enabled_rules):
            cost *= COSTS[name]
        return cost

    def glance(self, incumbent: Variant, candidate: Variant) -> float:
        self.now += 1
        return self.cost(candidate) / self.cost(incumbent) - 1

    def decide(self, incumbent: Variant, candidate: Variant, end: float, clock: Callable[[], float]) -> Judgement:
        self.now += 1
        self.decided.append(candidate.selection)
        self.ends.append(end)
        return Judgement(KEPT if self.cost(candidate) < self.cost(incumbent) else NO_BETTER)


def searched(shop: Shop, scales: Scales, changes: list[Change], seconds: float = 100.0) -> dict[str, str]:
    incumbent = shop.make(DEFAULT)
    run = _Search(shop, scales, incumbent, seconds, lambda: scales.now, Stages())  # type: ignore[arg-type]
    return {trial.name: trial.verdict for trial in run.through(changes, (), seconds)}


ALL = [change("fold_affine"), change("pick_parts"), change("remove_identities"), change("gather_shifts", PUT_IN)]
