"""What an engine says of the scores of a network, where it gives probabilities, or only the largest and their classes.

A probability and the network's own sum of exponentials tell a score. Of the classes that it does not name an engine
says that their scores are at most the least of those that it names. So what it gives is held against the network's
scores, in the units and by the budgets of these, and two classes that are as good as equal may change places.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from mlpdeploy.engine.runner import Arrays
from mlpdeploy.evidence.proof.runs import Outputs, Run
from mlpdeploy.graph.precision.answers import CLASSES, SCORES
from mlpdeploy.selection.service import ServiceChoice

ROUNDED = 2.0**-6
"""How far above 1 a probability may be rounded."""


def as_scores(run: Run, network: Run, name: str, service: ServiceChoice) -> Run:
    """What `run` gives, told as the scores (n, classes) of the output `name`, of which `network` gives the true ones.

    Where `run` says of a score no more than a bound, it is the network's own, or that bound. `run` itself where it
    gives scores. What it returns raises ValueError where classes are named that cannot be.
    """
    if not service.answers:
        return run
    softmax, topk, scores = service.softmax, service.topk, _once_a_row(network, name)

    def told(arrays: Arrays) -> Outputs:
        found, own = run(arrays), scores(arrays)
        classes = found[CLASSES] if topk is not None else np.broadcast_to(np.arange(own.shape[1]), own.shape)
        given = found[name if topk is None else SCORES]
        if topk is not None:
            _require_ranked(given, classes, own.shape[1])
        theirs = np.take_along_axis(own, classes, axis=1)
        values = _of_probabilities(given, theirs, own) if softmax else np.asarray(given, dtype=np.float64)
        whole = np.minimum(own, values.min(axis=1, keepdims=True))
        np.put_along_axis(whole, classes, values, axis=1)
        return {name: whole}

    return told


def of_scores(
    outputs: Outputs, allowed: Mapping[str, float], service: ServiceChoice
) -> tuple[Outputs, dict[str, float]]:
    """What an engine answers where the network's one output of scores (n, classes) is this, and what each may be off.

    `allowed` is what a score may be off: a probability may be off by that share of the largest. Which classes are named
    is held to nothing, since those of like scores may change places.
    """
    if not service.answers:
        return outputs, dict(allowed)
    ((name, scores),) = outputs.items()
    found, off = np.asarray(scores, dtype=np.float64), allowed[name]
    if service.softmax:
        raised = np.exp(found - found.max(axis=1, keepdims=True))
        found = raised / raised.sum(axis=1, keepdims=True)
        off *= float(found.max())
    if service.topk is None:
        return {name: found.astype(scores.dtype)}, {name: off}
    classes = np.argsort(-found, axis=1, kind="stable")[:, : service.topk]
    largest = np.take_along_axis(found, classes, axis=1).astype(scores.dtype)
    return {SCORES: largest, CLASSES: classes}, {SCORES: off, CLASSES: float(found.shape[1])}


def _once_a_row(network: Run, name: str) -> Callable[[Arrays], np.ndarray]:
    """An output of a network, in float64, which is computed once for each row."""
    known: dict[bytes, np.ndarray] = {}

    def scores(arrays: Arrays) -> np.ndarray:
        rows = zip(*arrays.values(), strict=True)
        keys = [hashlib.sha256(b"".join(value.tobytes() for value in row)).digest() for row in rows]
        if new := [place for place, key in enumerate(keys) if key not in known]:
            found = network({one: values[new] for one, values in arrays.items()})[name]
            known.update(zip((keys[place] for place in new), np.asarray(found, dtype=np.float64), strict=True))
        return np.stack([known[key] for key in keys])

    return scores


def _of_probabilities(given: np.ndarray, theirs: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The scores that probabilities tell, NaN where they are none; `theirs` are the network's of the same classes.

    One below the normal numbers of its dtype only says that the score is not above a bound.
    """
    largest = own.max(axis=1, keepdims=True)
    whole = largest + np.log(np.exp(own - largest).sum(axis=1, keepdims=True))
    tiny = float(ml_dtypes.finfo(given.dtype).smallest_normal)  # type: ignore[no-untyped-call]
    probable = np.asarray(given, dtype=np.float64)
    told = np.log(np.maximum(probable, tiny)) + whole
    told = np.where(probable < tiny, np.minimum(theirs, told), told)
    return np.where((probable >= 0) & (probable <= 1 + ROUNDED), told, np.nan)


def _require_ranked(given: np.ndarray, classes: np.ndarray, count: int) -> None:
    """Raise ValueError where `classes` (n, k) are not k of so many, or their scores not in order."""
    if classes.min() < 0 or classes.max() >= count:
        raise ValueError(f"it names class {classes.max() if classes.max() >= count else classes.min()} of {count}")
    if classes.shape[1] > 1:
        ordered = np.sort(classes, axis=1)
        if (ordered[:, 1:] == ordered[:, :-1]).any():
            raise ValueError("it names a class twice for one row")
        wide = np.asarray(given, dtype=np.float64)
        if (wide[:, 1:] > wide[:, :-1]).any():
            raise ValueError("its largest scores are not in order")
