"""What changed from an earlier run of a matrix to a later one, job by job.

A job is the one of before where its selection is. Times are compared only where they were measured on one machine, on
as many threads, at one batch size: the machine's parts must be the same, versions of libraries need not be, and are
said.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mlpdeploy.evidence.documents.matrix import FAILED, Matrix, Row
from mlpdeploy.evidence.latency.machine import differences
from mlpdeploy.evidence.report.matrix.engines import accuracy_of, in_order, place_of
from mlpdeploy.selection import Selection
from mlpdeploy.system.text import megabytes

FAILING, UNDONE, MENDED, DONE = "newly failing", "not done any more", "mended", "done now"
GONE, NEW = "gone", "new"
SLOWER, FASTER, LARGER, SMALLER = "slower", "faster", "larger", "smaller"
LESS_ACCURATE, MORE_ACCURATE, OTHER_FILES = "less accurate", "more accurate", "other files"
KINDS = (
    FAILING, UNDONE, LESS_ACCURATE, SLOWER, LARGER, GONE, NEW, MENDED, DONE, MORE_ACCURATE, FASTER, SMALLER,
    OTHER_FILES,
)  # fmt: skip
"""Kinds of changes, what got worse first."""
WORSE, BETTER = (FAILING, UNDONE, LESS_ACCURATE, SLOWER, LARGER), (MENDED, DONE, MORE_ACCURATE, FASTER, SMALLER)
ALIKE = 0.05
"""Two medians of two runs that differ by less are called the same: two loads of one engine differ by a few per cent."""
ERROR_ALIKE = 1.5
"""Two errors of which one is less than so many times the other are called the same."""
MACHINE = ("cpu", "cores", "architecture", "system", "gpu", "gpu_clock")
"""What of a fingerprint is the machine itself."""


@dataclass(frozen=True)
class Change:
    """One change of a job, in words; `before` and `after` are the two values where it is one of a number."""

    kind: str
    job: str
    text: str
    before: float | None = None
    after: float | None = None


@dataclass(frozen=True)
class Changes:
    """What changed since the run `earlier` (its file), of `created`; how many jobs both have; what was not compared."""

    earlier: str
    created: str
    compared: int
    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """How many jobs changed so, by kind, those of none left out."""
        found = Counter(kind for kind, _ in {(one.kind, one.job) for one in self.changes})
        return {kind: found[kind] for kind in KINDS if found[kind]}

    def of(self, kind: str) -> list[Change]:
        """The changes of one kind."""
        return [one for one in self.changes if one.kind == kind]

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON values."""
        return {**asdict(self), "changes": [asdict(one) for one in self.changes], "notes": list(self.notes)}


def changes(now: Matrix, before: Matrix, earlier: str, *, whole: bool = True) -> Changes:
    """What changed from the document `before`, read from the file `earlier`, to `now`.

    Where not `whole`, one of them is a part of a plan's jobs: then it is not told which are new or gone.
    """
    old, new = ({_identity(row): row for row in one.rows} for one in (before, now))
    both = [(old[key], row) for key, row in new.items() if key in old]
    found = [one for was, row in both for one in _of(was, row)]
    notes = list(_machines(both))
    if whole and now.shard == before.shard:
        found += [Change(NEW, row.job, _stands(row)) for key, row in new.items() if key not in old]
        found += [Change(GONE, row.job, f"it was {row.state}") for key, row in old.items() if key not in new]
    else:
        notes.append("One of the two is a part of its plan: which jobs are new or gone is not told")
    order = {kind: place for place, kind in enumerate(KINDS)}
    kept = tuple(sorted(found, key=lambda one: order[one.kind]))
    return Changes(earlier, before.created, len(both), kept, tuple(notes))


def _identity(row: Row) -> str:
    """A job's selection, less what is as usual: an option that was not there then is the same job still."""
    usual = {field.name: field.default for field in Selection.fields()}
    usual = {name: list(value) if isinstance(value, tuple) else value for name, value in usual.items()}
    said = {name: value for name, value in row.selection.items() if name not in usual or usual[name] != value}
    return json.dumps(said, sort_keys=True)


def _of(was: Row, row: Row) -> Iterator[Change]:
    """What changed of one job."""
    if row.state == FAILED:
        if was.state != FAILED:
            yield Change(FAILING, row.job, f"{row.error or 'no reason is told'} (it was {was.state})")
        return
    if was.done and not row.done:
        yield Change(UNDONE, row.job, f"it was {was.state}, and is {row.state}")
    if not row.done:
        return
    if was.state == FAILED:
        yield Change(MENDED, row.job, f"it failed: {was.error or 'no reason is told'}")
    elif not was.done:
        yield Change(DONE, row.job, f"it was {was.state}, and is {row.state}")
    yield from _accuracy(was, row)
    yield from _times(was, row)
    yield from _size(was, row)
    if was.files and row.files and was.files != row.files:
        names = [name for name in sorted({*was.files, *row.files}) if was.files.get(name) != row.files.get(name)]
        rebuilt = "; its key is another" if was.key != row.key else ""
        yield Change(OTHER_FILES, row.job, f"{', '.join(names)}{rebuilt}")


def _stands(row: Row) -> str:
    return row.state if row.error is None else f"{row.state}: {row.error}"


def _accuracy(was: Row, row: Row) -> Iterator[Change]:
    before, after = accuracy_of(was), accuracy_of(row)
    if before is None or after is None or before.of != after.of or before.text == after.text:
        return
    low, high = sorted((before.value, after.value))
    if not before.share and low * ERROR_ALIKE > high:
        return
    kind = MORE_ACCURATE if after.rank > before.rank else LESS_ACCURATE
    yield Change(kind, row.job, f"{before.text} to {after.text}, {after.of}", before.value, after.value)


def _times(was: Row, row: Row) -> Iterator[Change]:
    if not _one_place(was, row):
        return
    for batch in in_order(was.facts.latency_ms.keys() & row.facts.latency_ms.keys()):
        before, after = was.facts.latency_ms[batch], row.facts.latency_ms[batch]
        if abs(after / before - 1) > ALIKE:
            text = f"{before:.3g} to {after:.3g} ms at batch {batch} ({after / before - 1:+.0%})"
            yield Change(SLOWER if after > before else FASTER, row.job, text, before, after)


def _one_place(was: Row, row: Row) -> bool:
    """Whether two rows were timed on one machine, on as many threads."""
    there, here = place_of(was, 1), place_of(row, 1)
    return there is not None and there == here and not _unlike(was.machine, row.machine)


def _unlike(there: Mapping[str, Any] | None, here: Mapping[str, Any] | None) -> list[str]:
    """What differs between two machines themselves."""
    parts = ({name: (one or {}).get(name) for name in MACHINE} for one in (here, there))
    return differences(*parts)


def _size(was: Row, row: Row) -> Iterator[Change]:
    before, after = was.facts.engine_bytes, row.facts.engine_bytes
    if before is None or after is None or megabytes(before) == megabytes(after):
        return
    growth = f" ({after / before - 1:+.1%})" if before else ""
    text = f"{megabytes(before)} to {megabytes(after)} MB{growth}"
    yield Change(LARGER if after > before else SMALLER, row.job, text, before, after)


def _machines(both: list[tuple[Row, Row]]) -> Iterator[str]:
    """Which times were not compared and why, and which were in spite of other versions."""
    timed = [(was, row) for was, row in both if was.facts.latency_ms and row.facts.latency_ms]
    apart = Counter(_why(was, row) for was, row in timed if not _one_place(was, row))
    for why, count in apart.items():
        yield f"Times of {count} job{'s'[: count > 1]} are not compared: {why}"
    versions = Counter(
        told
        for was, row in timed
        if _one_place(was, row)
        for told in [", ".join(differences(row.machine or {}, was.machine or {}))]
        if told
    )
    for told, count in versions.items():
        yield f"Times of {count} job{'s'[: count > 1]} are compared although something differs: {told}"


def _why(was: Row, row: Row) -> str:
    there, here = place_of(was, 1), place_of(row, 1)
    if there is None or here is None:
        return "it is not known on which machine they were measured"
    return ", ".join(_unlike(was.machine, row.machine)) or f"{here.text} (was {there.text})"
