"""The search of a build: which rules, forms and build routes pay for this network, in this engine, on this device.

    defaults -> each change at first sight -> the most promising first: built, proved, judged against the best so far

A change leaves out a rule or form that fired, or puts in one that is off, or sets one setting of the engine's compiler
to a value other than its default (a word of a build route). What is decided better is kept, and the next ones are
tried on top of it. Every variant passes the ladder's float64 rung before it is judged, and with a build route, which
leaves the graph as it is, its engine's: by time, in pairs of loads as the gate of `regress` has them; where its engines
cannot run here, by what they launch and move.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from mlpdeploy.artifact import decisions
from mlpdeploy.artifact.decisions import (
    BY_STRUCTURE,
    BY_TIME,
    KEPT,
    NO_BETTER,
    REFUSED,
    UNTRIED,
    Case,
    Decision,
    Effort,
    Trial,
)
from mlpdeploy.engine.backend import Backend
from mlpdeploy.engine.base import one_line
from mlpdeploy.errors import MlpdeployError
from mlpdeploy.network.source import Source
from mlpdeploy.progress import Stages
from mlpdeploy.search import promise
from mlpdeploy.search.judging import Judge, by_structure, by_time
from mlpdeploy.search.variants import Change, Unchanged, Variant, Workshop
from mlpdeploy.selection import Selection
from mlpdeploy.system.leftovers import workplace

if TYPE_CHECKING:
    from mlpdeploy.graph.tracing.trace import Traced

SECONDS, TACTICS = 120.0, 3600.0
"""How long a search lasts, of rules and forms, and of build routes, unless something else is asked for."""
GLANCES, SHARE = 0.4, 0.75
"""The shares of the time in which changes are looked at for the first time, and of what is left that one may take."""

STRIKING = -0.03
"""The logarithm of the ratio, at first sight or as measured before, below which a change is decided before others are
looked at."""


def decide(
    traced: Traced,
    source: Source,
    selection: Selection,
    backend: Backend,
    effort: Effort,
    anew: bool,
    stages: Stages,
) -> tuple[Case, Decision | None]:
    """The case of a build, and what is decided for it: remembered, or searched for where `effort` asks for that.

    What is remembered is searched for again `anew`, or where the search before had fewer seconds than it needed. Build
    routes are tried on top of the rules and forms that were decided. What an earlier search decides about this build is
    said.
    """
    case = decisions.case_of(selection, backend, decisions.structure(traced))
    known, path = decisions.found(selection, case)
    before = known
    for routes, seconds in ((False, effort.search), (True, effort.tactics)):
        if seconds is None or (known is not None and known.settled(routes, seconds) and not anew):
            continue
        known = search(traced, source, selection, backend, seconds, stages, routes=routes, known=known)
        stages.say(f"decisions kept in {decisions.remember(selection.out, case, known)}")
    if known is not None and known is before and (kept := known.kept_in_words()):
        stages.say(f"decided by the search of {known.created[:10]} in {path}: {kept}")
    return case, known


def search(
    traced: Traced,
    source: Source,
    selection: Selection,
    backend: Backend,
    seconds: float,
    stages: Stages,
    clock: Callable[[], float] = time.monotonic,
    *,
    routes: bool = False,
    known: Decision | None = None,
) -> Decision:
    """What pays for a selection whose backend is decided, found within about so many seconds.

    Of build routes where `routes` says so, otherwise of rules and forms; what is `known` of the other kind is taken as
    it is. Raises what a build raises where the engine cannot be built by default, and MachineLacks where its engines
    neither run here nor tell what they launch, or where no build routes are offered.
    """
    began, others, beside = clock(), () if known is None else known.of(not routes), decisions.said_by(selection)
    selection = selection if known is None else decisions.applied(selection, replace(known, trials=others))
    with stages("search"), workplace() as folder:
        shop = Workshop(traced, source, selection, backend, folder)
        offered = shop.routes() if routes else []
        incumbent = shop.make(selection)
        changes = offered if routes else shop.changes(incumbent)
        timed = backend.executable() is None
        judge = by_time(shop, len(changes)) if timed else by_structure(backend)
        run = _Search(shop, judge, incumbent, began + seconds, clock, stages)
        trials = run.through(*_in_order(changes, backend.name, selection.name), began + GLANCES * seconds)
    taken = max(0.1, round(clock() - began, 1))
    return Decision(
        network=selection.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        judged_by=BY_TIME if timed else BY_STRUCTURE,
        batch=selection.profile.opt,
        seconds=taken if not routes else 0.0 if known is None else known.seconds,
        trials=(*others, *trials) if routes else (*trials, *others),
        tactics=taken if routes else 0.0 if known is None else known.tactics,
        beside=beside,
    )


def _in_order(changes: Collection[Change], backend: str, network: str) -> tuple[list[Change], set[Change]]:
    """Changes in the order in which they are tried, and those that are decided at once: what was striking for this
    network in that engine.

    Those come first, then what paid most for it or others, then what changes most places.
    """
    own = promise.measured(backend, network)
    known = promise.elsewhere(backend) | own
    at_once = {one for one in changes if math.log(own.get((one.name, one.change), 1.0)) < STRIKING}
    ranked = sorted(changes, key=lambda one: (one not in at_once, known.get((one.name, one.change), 1.0), -one.fired))
    return ranked, at_once


Found = TypeVar("Found")


class _Search:
    """One run: the best so far, and what has been tried."""

    def __init__(
        self,
        shop: Workshop,
        judge: Judge,
        incumbent: Variant,
        end: float,
        clock: Callable[[], float],
        stages: Stages,
    ) -> None:
        self.shop, self.judge, self.incumbent, self.end = shop, judge, incumbent, end
        self.clock, self.stages, self.promising = clock, stages, dict[Change, Variant]()

    def through(self, changes: list[Change], at_once: Collection[Change], glancing_until: float) -> list[Trial]:
        """Each change at first sight, as many as there is time for; then the most promising first.

        Those that are to be decided `at_once` are, and what is far better at first sight.
        """
        tried, seen = dict[Change, Trial](), dict[Change, float]()
        for done, change in enumerate(changes):
            if change in at_once:
                tried[change] = self._tried(change, done, len(changes))
                continue
            if self.clock() > glancing_until:
                break
            self.stages.step(f"{change}, at first sight", done, len(changes))
            candidate = self._made(change)
            if isinstance(candidate, Trial):
                tried[change] = candidate
                continue
            looked = self._judged(change, partial(self.judge.glance, self.incumbent, candidate))
            if isinstance(looked, Trial):
                tried[change] = looked
                self.shop.remove(candidate)
                continue
            seen[change] = looked
            if looked < 0:
                self.promising[change] = candidate
            else:
                self.shop.remove(candidate)
            if looked < STRIKING:
                tried[change] = self._tried(change, done, len(changes))
        waiting = sorted((one for one in changes if one not in tried), key=lambda one: seen.get(one, 0.0))
        tried |= {change: self._tried(change, place, len(waiting)) for place, change in enumerate(waiting)}
        return [*tried.values()]

    def _tried(self, change: Change, done: int, total: int) -> Trial:
        if self.clock() > self.end:
            return change.trial(UNTRIED)
        self.stages.step(str(change), done, total)
        candidate = self._made(change)
        if isinstance(candidate, Trial):
            return candidate
        now = self.clock()
        until = now + SHARE * (self.end - now)
        found = self._judged(change, partial(self.judge.decide, self.incumbent, candidate, until, self.clock))
        if isinstance(found, Trial):
            self.shop.remove(candidate)
            return found
        trial = change.trial(found.verdict, found.ratio, found.pairs, found.why)
        if trial.verdict == KEPT:
            self.incumbent = candidate
            self.stages.say(f"{change}: {trial.said}")
        else:
            self.shop.remove(candidate)
        return trial

    def _judged(self, change: Change, judging: Callable[[], Found]) -> Found | Trial:
        """What the judge finds; or why not, where an engine that was built cannot be loaded or run."""
        try:
            return judging()
        except MlpdeployError as error:
            self.judge.glance(self.incumbent, self.incumbent)  # raises where the fault is not the candidate's
            return change.trial(REFUSED, why=one_line(error))

    def _made(self, change: Change) -> Variant | Trial:
        """The best so far with one change more; or why there is no such engine."""
        wanted = change.applied(self.incumbent.selection)
        if (before := self.promising.pop(change, None)) is not None:
            if before.selection == wanted:
                return before
            self.shop.remove(before)
        try:
            return self.shop.make(wanted, unlike=self.incumbent)
        except Unchanged as error:
            return change.trial(NO_BETTER, why=str(error))
        except Exception as error:  # a graph without a rule may be one that nothing else was made for
            return change.trial(REFUSED, why=one_line(error))
