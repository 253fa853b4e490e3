"""What jobs of one plan are called, and where each keeps its artifact: by what tells one from the others."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from mlpdeploy.engine.nvidia import CURRENT
from mlpdeploy.matrix.job import Job
from mlpdeploy.matrix.options import CALLED, SHOWN
from mlpdeploy.selection import Selection

LONGEST = 100
"""Characters of a folder's or a file's name that are text; what is longer ends in a hash."""


def apart(jobs: Sequence[Job]) -> tuple[Job, ...]:
    """The jobs by names of their own, each with a store of its own where one folder would be that of several.

    An artifact's folder has the network, the precision, the backend and the GPU in its path. Jobs that differ in
    something else lie in `<out>/<what differs>/`, such as `artifacts/batch-1-8-32/`; all others in `out` itself.
    """
    names = _told_apart(jobs, lambda one: _usual(one.selection), SHOWN)
    named = [replace(job, name=" ".join((_usual(job.selection), *more))) for job, more in zip(jobs, names, strict=True)]
    undecided = {_network(job.selection) for job in jobs if job.selection.backend == "auto"}
    differ = _told_apart(jobs, lambda one: _folder(one.selection, undecided), ())
    stores = Counter((_folder(job.selection, undecided), _store(more)) for job, more in zip(jobs, differ, strict=True))
    found = []
    for job, more in zip(named, differ, strict=True):
        own = _store(more)
        if own and stores[_folder(job.selection, undecided), own] > 1:
            own = f"{own}-{_digest(' '.join(more))}"
        found.append(replace(job, selection=replace(job.selection, out=job.selection.out / own)))
    return tuple(found)


def slug(text: str) -> str:
    """A text as the name of a file."""
    short = re.sub(r"[^\w.=]+", "-", text).strip("-.") or "_"
    return short if len(short.encode()) <= LONGEST else f"{short[: LONGEST // 4]}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _store(more: Sequence[str]) -> str:
    return slug("-".join(more)) if more else ""


def _usual(selection: Selection) -> str:
    return f"{selection.name} {selection.precision} {selection.backend} {selection.batch}"


def _network(selection: Selection) -> tuple[str, str]:
    return selection.folder_name, selection.precision


def _folder(selection: Selection, undecided: Collection[tuple[str, str]]) -> str:
    """What decides where an artifact lies; where some backend is to be decided yet, the network and the precision."""
    where, gpus = _network(selection), [gpu for gpu in selection.gpus if gpu != CURRENT]
    return " ".join(where if where in undecided else (*where, selection.backend, *gpus))


def _told_apart(jobs: Sequence[Job], of: Callable[[Job], str], said: Sequence[str]) -> list[tuple[str, ...]]:
    """For each job what tells it from those that are alike in `of`, as `option=value`; `said` is told already."""
    groups: dict[str, list[dict[str, Any]]] = {}
    keys = [of(job) for job in jobs]
    values = [{name: getattr(job.selection, name) for name in CALLED if name != "out"} for job in jobs]
    for key, one in zip(keys, values, strict=True):
        groups.setdefault(key, []).append(one)
    differ = {
        key: [name for name in CALLED if name not in ("out", *said) and len({one[name] for one in group}) > 1]
        for key, group in groups.items()
    }
    return [
        tuple(f"{CALLED[name]}={_text(one[name])}" for name in differ[key])
        for key, one in zip(keys, values, strict=True)
    ]


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
