"""Markdown about a matrix, for the summary of a CI run: what failed and what changed, the best engines, every job."""

from __future__ import annotations

from collections.abc import Iterator

from mlpdeploy.evidence.documents.matrix import BUILT, CACHED, CANCELLED, FAILED, PENDING
from mlpdeploy.evidence.report.markdown import Markdown, code, items, strong, table, text
from mlpdeploy.evidence.report.matrix.changes import KINDS, Changes
from mlpdeploy.evidence.report.matrix.result import Result
from mlpdeploy.evidence.report.matrix.words import Failure, failures, pick, timed_at, told, unfinished, verdicts
from mlpdeploy.evidence.report.matrix.words import table as rows_of
from mlpdeploy.evidence.report.matrix.words import title as title_of

MARKS = {BUILT: "✅", CACHED: "✅", FAILED: "❌", CANCELLED: "⚠️", PENDING: "⏳"}
LISTED, ROWS = 12, 500
"""Entries of a list, and rows of a table, that are shown; of the others it is said how many there are."""


def summary(result: Result) -> str:
    """Markdown about a matrix, every value in it escaped."""
    document = result.document
    mark = "✅" if document.passed else "❌" if document.counts()[FAILED] else "⏳"
    parts = [
        f"### {mark} {text(title_of(document))}: {text(told(document.counts()) or 'no job')}",
        *_failed(result),
        *([] if result.since is None else _changes(result.since)),
        items(
            [Markdown(f"{strong(one.topic)}: {text(one.line)}. {text(one.because)}.") for one in verdicts(result)[1:]]
        ),
        *_best(result),
        *_jobs(result),
    ]
    return "\n\n".join(parts) + "\n"


def _failed(result: Result) -> Iterator[str]:
    found = failures(result.document)
    if found:
        yield "#### What failed"
        yield _listed([_reason(one) for one in found])
    if left := unfinished(result.document):
        yield f"Not done: {', '.join(text(row.job) for row in left[:LISTED])}{_more(len(left))}."


def _reason(one: Failure) -> Markdown:
    jobs = ", ".join(f"{text(row.job)}{'' if row.log is None else f' ({code(row.log)})'}" for row in one.rows[:LISTED])
    at = f" at {text(one.step)}" if one.step else ""
    return Markdown(f"{strong(f'{len(one.rows)}{at}')}: {text(one.error)}: {jobs}{_more(len(one.rows))}")


def _changes(since: Changes) -> Iterator[str]:
    yield f"#### Since {text(since.earlier)}: {text(told(since.counts()) or 'nothing changed')}"
    rows = [[kind, one.job, one.text] for kind in KINDS for one in since.of(kind)[:LISTED]]
    if rows:
        yield table(["", "job", "what"], rows)
    left = len(since.changes) - len(rows)
    notes = [*since.notes, *([f"{left} more changes are in the result with --json"] if left else [])]
    if notes:
        yield items(notes)


def _best(result: Result) -> Iterator[str]:
    limits, best = result.limits, result.best[:ROWS]
    if not any(one.known for one in best):
        return
    yield f"#### Best engines{f': {text(limits.text)}' if limits else ''}"
    own = [f"the {limits.wanted} within"] if limits else []
    yield table(
        ["network", "timed at", *own, "fastest", "most accurate", "smallest"],
        [
            [
                one.network,
                timed_at(result.seen, one),
                *([strong(pick(one, one.within)) if one.within else f"none: {one.why}"] if limits else []),
                *(pick(one, engine) for engine in (one.fastest, one.accurate, one.smallest)),
            ]
            for one in best
        ],
    )


def _jobs(result: Result) -> Iterator[str]:
    engines = result.seen.engines
    if not engines:
        return
    header, rows = rows_of(result.seen, engines)
    yield "#### Jobs"
    cells = zip(engines, rows, strict=True)
    shown = [[f"{MARKS[one.row.state]} {one.row.state}", one.row.job, *row] for one, row in cells][:ROWS]
    yield table(["", "job", *(f"{name}{'' if name == 'timed on' else ':'}" for name in header)], shown)
    if len(rows) > ROWS:
        yield f"and {len(rows) - ROWS} more."


def _listed(lines: list[Markdown]) -> str:
    return items(lines[:LISTED]) + (f"\n- and {len(lines) - LISTED} more reasons" if len(lines) > LISTED else "")


def _more(count: int) -> str:
    return f" and {count - LISTED} more" if count > LISTED else ""
