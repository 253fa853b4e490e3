"""What each rule is worth on a GPU: without each that fired, with each that is off, and with all that pay."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from benchmarks.gpu import timer
from benchmarks.gpu.networks import Row, captured, compiler, load, low, tune
from mlpdeploy.evidence.latency.timing import FASTER
from mlpdeploy.graph.rewrite import all_rules


def prepare(name: str, batch: int, device: str, dry: bool, seconds: float) -> Callable[[], Row]:
    """Compiles a network as it is rewritten by default, with each rule that fired left out and each that is off put in.

    What measures them compiles one more, `searched`: by all changes that are decided better, at once.
    """
    ours, images = load(name, device), load(name, device).images(batch, device).to(low(device))
    changes: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    for rule, fires in _fired(name, device).items():
        if fires:
            on = rule in ours.rules
            changes[f"{'without' if on else 'with'} {rule}"] = ((rule,), ()) if on else ((), (rule,))

    def run(disabled: tuple[str, ...] = (), enabled: tuple[str, ...] = ()) -> timer.Run:
        network = load(name, device, enabled, disabled)
        tune(network, batch, device)
        return captured(compiler(dry)(network.ours), images)

    with torch.inference_mode():
        runs = {"ours": run(), **{label: run(*change) for label, change in changes.items()}}

    def measure() -> Row:
        with torch.inference_mode():
            first = timer.row(timer.measure(runs, seconds=seconds), "ours")
            better = [label for label in changes if first[label]["ratio"]["verdict"] == FASTER]
            kept = [changes[label] for label in better]
            if not kept:
                return {"times": first, "searched": []}
            disabled, enabled = (tuple(name for change in kept for name in change[side]) for side in (0, 1))
            pair = {"ours": runs["ours"], "searched": run(disabled, enabled)}
            last = timer.row(timer.measure(pair, seconds=seconds), "ours")
        return {"times": first | {"searched": last["searched"]}, "searched": better}

    return measure


@functools.cache
def _fired(name: str, device: str) -> dict[str, int]:
    """How often each rule fires, those that are off by default put in one by one."""
    found = dict(load(name, device).rules)
    return found | {rule: load(name, device, (rule,)).rules[rule] for rule in all_rules() if rule not in found}
