"""What each rule is worth on a GPU: without each that fired, with each that is off, and with all that pay at once."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu import timer
from benchmarks.gpu.networks import (
    CHECKED,
    Network,
    Row,
    by_rules,
    captured,
    compiler,
    deviation,
    exact,
    fired,
    first,
    has_kernel,
    load,
    ready,
    tune,
    without_kernel,
)  # fmt: skip
from mlpdeploy.engine.backends.inductor import SHIFTS
from mlpdeploy.evidence.latency.timing import FASTER
from mlpdeploy.graph.rewrite import all_rules, for_kernel

PROMISING = ("reorder_channels", "activate_projections", "lay_maps_last", "fuse_token_mlps", "fuse_epilogues")
"""Rules that are to be measured first, in or out: those that a measurement or the structure speaks for."""
KERNEL = "without kernel"
"""Our operations as they are spelled out."""
SEARCHED = "searched"
EARLY = 3
"""Changes behind which all that were better are measured at once for the first time."""
DRY = 4
"""Changes of a dry run."""
WORSE = 5.0
"""An error this many times that of the default rules is no rounding."""


@dataclass(frozen=True)
class Contest:
    """A network by its default rules, compiled, and what others are held against."""

    name: str
    batch: int
    device: str
    dry: bool
    seconds: float
    network: Network
    images: Tensor
    wanted: Tensor
    ours: timer.Run

    def run(self, labels: Sequence[str]) -> tuple[timer.Run, float | None]:
        """The network with changes, captured as a CUDA graph, and its error."""
        disabled = tuple(label.removeprefix("without ") for label in labels if label.startswith("without "))
        enabled = tuple(label.removeprefix("with ") for label in labels if label.startswith("with "))
        network = load.__wrapped__(self.name, self.device, enabled, tuple({*disabled} - {"kernel"}))
        tune(network, self.batch, self.device)
        module = without_kernel(network.ours) if KERNEL in labels else network.ours
        found = captured(compiler(self.dry)(module), self.images[: self.batch])
        return found, deviation(first(found()), self.wanted)

    def times(self, **contenders: timer.Run) -> Row:
        """Of ours and others, in turns."""
        return timer.row(timer.measure({"ours": self.ours, **contenders}, seconds=self.seconds), "ours")


def measure(known: Row, name: str, batch: int, device: str, dry: bool, seconds: float, most: int) -> Iterator[Row]:
    """A row that grows by a change each time, most promising first, until `most` were tried.

    What is `left` says what another call is to do, and `trying` what was begun. What was begun by one whose process
    died is not tried again.
    """
    new: Row = {"times": {}, "errors": {}, "failed_changes": {}, "tried": 0}
    row = known or new | {"left": planned(changes(name, device)[: DRY if dry else None])}
    if (died := row.pop("ended", None)) and (label := row.pop("trying", None)):
        row |= _behind(row)
        row["failed_changes"][label] = died
    contest = None
    for label in row["left"][: most - row["tried"]]:
        yield row | {"trying": label}
        with torch.inference_mode():
            contest = contest or _contest(name, batch, device, dry, seconds)
            if "ours" not in row["times"]:
                row["times"]["ours"] = contest.times()["ours"]
                row["errors"]["ours"] = deviation(first(contest.ours()), contest.wanted)
            try:
                row |= _searched(contest, row) if label == SEARCHED else _changed(contest, row, label)
            except Exception as error:  # a change that does not compile costs no other
                row["failed_changes"][label] = f"{type(error).__name__}: {error}"[:300]
        row |= _behind(row)
        yield row
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()  # what was captured leaves its memory to other processes


def _behind(row: Row) -> Row:
    return {"left": row["left"][1:], "tried": row["tried"] + 1}


def planned(labels: Sequence[str]) -> list[str]:
    """What is tried one after the other: `searched` behind those that promise most, and again behind all."""
    return [*labels[:EARLY], SEARCHED, *labels[EARLY:], *([SEARCHED] if labels[EARLY:] else [])]


def changes(name: str, device: str) -> list[str]:
    """Most promising first: each rule that fires left out, or put in where it is off; our operations spelled out."""
    ours = load(name, device)
    firing = _fired(name, device)
    labels = {rule: f"{'without' if rule in ours.rules else 'with'} {rule}" for rule in firing}
    late = [rule for rule in firing if rule not in PROMISING]
    return [
        *(labels[rule] for rule in PROMISING if rule in firing),
        *([KERNEL] if has_kernel(ours.ours) else []),
        *(labels[rule] for rule in late if rule in ours.rules),
        *(labels[rule] for rule in sorted(late, key=lambda rule: rule in SHIFTS) if rule not in ours.rules),
    ]


@functools.cache
def _fired(name: str, device: str) -> dict[str, int]:
    """How often each rule fires, those that are off by default put in one by one, but those that never do."""
    on = load(name, device).rules
    off = {rule: fired(by_rules(name, (rule,)))[rule] for rule in all_rules() if rule not in on}
    return {rule: count for rule, count in (on | off).items() if count}


def _contest(name: str, batch: int, device: str, dry: bool, seconds: float) -> Contest:
    network, images = ready(name, batch, device)
    wanted = exact(network.plain, images[:CHECKED].float())
    ours = captured(compiler(dry)(network.ours), images[:batch])
    return Contest(name, batch, device, dry, seconds, network, images, wanted, ours)


def _changed(contest: Contest, row: Row, label: str) -> Row:
    run, error = contest.run([label])
    found = contest.times(changed=run)["changed"]
    return {"times": row["times"] | {label: found}, "errors": row["errors"] | {label: error}}


def _searched(contest: Contest, row: Row) -> Row:
    """All changes at once that were decided better, or the best of them alone where that is faster."""
    better = sorted(_better(row), key=lambda label: float(row["times"][label]["ratio"]["value"]))
    if not better or better == row.get("better"):
        return {SEARCHED: row.get(SEARCHED, [])}
    candidates: list[list[str]] = [better[:1], *([both] if (both := together(better)) != better[:1] else [])]
    found: dict[str, tuple[list[str], Row, float | None]] = {}
    for labels in candidates:
        run, error = contest.run(labels)
        found["; ".join(labels)] = labels, contest.times(searched=run)[SEARCHED], error
    right = [one for one in found.values() if _is_right(row, one[2])]
    labels, times, error = min(right, key=lambda one: float(one[1]["ratio"]["value"]))
    return {
        "better": better,
        SEARCHED: labels,
        "times": row["times"] | {SEARCHED: times},
        "errors": row["errors"] | {SEARCHED: error},
    }


def _better(row: Row) -> list[str]:
    changed = {label: times for label, times in row["times"].items() if label not in ("ours", SEARCHED)}
    faster = [label for label, times in changed.items() if times["ratio"]["verdict"] == FASTER]
    return [label for label in faster if _is_right(row, row["errors"][label])]


def _is_right(row: Row, error: float | None) -> bool:
    ours = row["errors"]["ours"]
    return error is not None and (ours is None or error <= WORSE * max(ours, 1e-6))


def together(better: Sequence[str]) -> list[str]:
    """Those of the changes, best first, that go together: rules that make our operations, or these spelled out."""
    makers = {f"with {rule}" for rule in for_kernel()}
    first = next((label for label in better if label == KERNEL or label in makers), None)
    return [label for label in better if label not in (makers if first == KERNEL else {KERNEL})]
