"""One rung of the ladder: a form of the network runs over rows, and what it gives is held against a reference."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from mlpdeploy.engine.backend import Progress
from mlpdeploy.engine.batch import Batch
from mlpdeploy.errors import MlpdeployError
from mlpdeploy.evidence.proof.compare import agreement, compare, is_logits, require_classes, usual
from mlpdeploy.evidence.proof.edges import Factor, off_at
from mlpdeploy.evidence.proof.ladder import FAILED, PASSED, Check, Extreme, OnImages, Stage, judge
from mlpdeploy.evidence.proof.reference import Reference
from mlpdeploy.evidence.proof.runs import Outputs, Run, in_batches
from mlpdeploy.zoo.recipe import Budget

Finding = Check | Extreme | OnImages


def climb(
    name: str, steps: int, find: Callable[[], Iterator[Iterable[Finding]]], allowed: Budget, progress: Progress
) -> Stage:
    """Run one rung, which finds something in each of its steps; what it raises is its failure."""
    began = time.monotonic()
    found: list[Finding] = []
    progress.step(name, 0, steps)
    reason = ""
    try:
        for done, more in enumerate(find(), 1):
            found += more
            progress.step(name, done, steps)
    except MlpdeployError:
        raise
    except (Exception, SystemExit) as error:  # of the user's code, or of a backend
        first = next(iter(str(error).splitlines()), "")
        reason = f"it raised {type(error).__name__}: {first}"
    checks = tuple(one for one in found if isinstance(one, Check))
    extremes = tuple(one for one in found if isinstance(one, Extreme))
    images = next((one for one in found if isinstance(one, OnImages)), None)
    reason = reason or judge(checks, images, allowed, extremes)
    return Stage(
        name, FAILED if reason else PASSED, reason, allowed, checks, images, time.monotonic() - began, extremes
    )


def held_against(
    load: Callable[[], Run],
    reference: Reference,
    sizes: Sequence[int],
    batch: Batch,
    budget: float,
    factor: Factor | None,
    rng: np.random.Generator,
) -> Iterator[Iterable[Finding]]:
    """At every size, in order and permuted; for the extreme rows (see `edges.off_at`); and on the images."""
    run = load()
    for size in sizes:
        yield checked(run, reference, size, rng)
    yield off_at(run, reference.edges, batch, reference.usual, budget, factor)
    if reference.images:
        yield [_on_images(run, reference, batch)]


def checked(
    run: Run, against: Reference, size: int, rng: np.random.Generator, *, permuting: bool = True
) -> list[Check]:
    """Every output at one batch size, in order and, unless not `permuting`, permuted.

    Where every row is there twice or more, each against the same row elsewhere is a permutation too, and needs no run.
    """
    order = _order(size, against.count, rng)
    found = run({name: values[order] for name, values in against.rows.items()})
    shuffle = shuffled = None
    if permuting and size >= 2 * against.count:
        shuffle, shuffled = _same_rows(order), found
    elif permuting and size > 1:
        shuffle = _derangement(size, rng)
        shuffled = run({name: values[order[shuffle]] for name, values in against.rows.items()})
    checks = []
    for name, expected in against.outputs.items():
        comparison = compare(found[name], expected[order], against.usual(name))
        permuted = None
        if shuffled is not None and comparison.finite:
            permuted = compare(shuffled[name], found[name][shuffle], against.usual(name))
        ranked = agreement(found[name], expected[order]) if is_logits(expected) else None
        checks.append(Check(size, name, comparison, permuted, ranked))
    return checks


def accuracy(outputs: Outputs, labels: np.ndarray | None) -> float | None:
    """The share of rows whose largest logit is at the label; None without logits or labels.

    Raises InputError for a label that is no class.
    """
    logits = next((o for o in outputs.values() if is_logits(o)), None)
    if logits is None or labels is None:
        return None
    require_classes(labels, logits)
    return float((logits.argmax(axis=1) == labels).mean())


def _order(size: int, distinct: int, rng: np.random.Generator) -> np.ndarray:
    """Which distinct row stands where: all of them as often as each other, in random order."""
    return rng.permutation(np.arange(size) % distinct)


def _same_rows(order: np.ndarray) -> np.ndarray:
    """For each place another one where the same row stands; every row stands in two places or more."""
    places = np.arange(len(order))
    for row in np.unique(order):
        (same,) = np.nonzero(order == row)
        places[same] = np.roll(same, 1)
    return places


def _derangement(size: int, rng: np.random.Generator) -> np.ndarray:
    """A random permutation of two rows or more that leaves no row in its place (a rotation in random labels)."""
    labels = rng.permutation(size)
    permutation = np.empty(size, dtype=np.int64)
    permutation[labels] = np.roll(labels, 1)
    return permutation


def _on_images(run: Run, against: Reference, batch: Batch) -> OnImages:
    """The stage on the real images, by the first output that reads as logits, else by the first."""
    outputs = in_batches(run, against.images, batch)
    name = next((n for n, o in against.image_outputs.items() if is_logits(o)), next(iter(against.image_outputs)))
    expected = against.image_outputs[name]
    ranked = agreement(outputs[name], expected) if is_logits(expected) else None
    compared = compare(outputs[name], expected, usual(against.image_outputs, name))
    return OnImages(compared, ranked, accuracy({name: outputs[name]}, against.labels))
