"""What a matrix amounts to in words: the lines that its page and its Markdown start with, its table, its failures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mlpdeploy.evidence.documents.matrix import CANCELLED, FAILED, PENDING, Matrix, Row, Step
from mlpdeploy.evidence.report.matrix.best import Best, Limits
from mlpdeploy.evidence.report.matrix.changes import BETTER, WORSE, Changes
from mlpdeploy.evidence.report.matrix.engines import (
    EVALUATE,
    TIMED,
    VERIFY,
    Engine,
    Overview,
    Place,
    ended_at,
    in_order,
    number,
)
from mlpdeploy.evidence.report.matrix.result import Result
from mlpdeploy.evidence.report.verdicts import BAD, GOOD, MIXED, UNKNOWN, Verdict
from mlpdeploy.system.text import megabytes


@dataclass(frozen=True)
class Failure:
    """Jobs that failed at the same command for the same reason."""

    step: str
    error: str
    rows: tuple[Row, ...]


def title(document: Matrix) -> str:
    """What a matrix is of: its plan's file, and which shard of it."""
    part = "" if document.shard is None else f", shard {document.shard['index']}/{document.shard['count']}"
    return f"{document.plan['path']}{part}"


def failures(document: Matrix) -> list[Failure]:
    """Why jobs failed, those first that most of them did."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in document.rows:
        if row.state == FAILED:
            step = ended_at(row)
            reason = (None if step is None else step.error) or row.error or "no reason is told"
            found.setdefault(("" if step is None else step.name, reason), []).append(row)
    alike = [Failure(*key, tuple(rows)) for key, rows in found.items()]
    return sorted(alike, key=lambda one: -len(one.rows))


def unfinished(document: Matrix) -> list[Row]:
    """The jobs that ended with the run, or were not begun."""
    return [row for row in document.rows if row.state in (CANCELLED, PENDING)]


def told(counts: dict[str, int]) -> str:
    """Counts in words, those of none left out: `3 built, 1 failed`."""
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def verdicts(result: Result) -> tuple[Verdict, ...]:
    """The verdicts on a matrix, the most important one first."""
    document = result.document
    found = [_jobs(document), _correctness(document), _accuracy(document), _speed(document, result.seen)]
    if result.limits:
        found.append(_limits(result.best, result.limits))
    if result.since is not None:
        found.append(_changes(result.since))
    return tuple(found)


def table(seen: Overview, engines: Sequence[Engine]) -> tuple[list[str], list[list[str]]]:
    """A header and a row for each engine, with those columns of which something is known; all are numbers but the last.

    What tells an engine from others, and its job's state, are not in it.
    """
    columns: list[tuple[str, Callable[[Engine], str]]] = [
        *((f"ms, batch {batch}", _time(batch)) for batch in in_order(b for one in engines for b in one.times)),
        ("top-1", lambda one: "" if one.row.facts.top1 is None else f"{one.row.facts.top1:.2%}"),
        ("error", lambda one: _error(one.row)),
        ("of budget", lambda one: "" if one.row.facts.of_budget is None else f"{one.row.facts.of_budget:.2g}"),
        ("MB", lambda one: "" if one.row.facts.engine_bytes is None else megabytes(one.row.facts.engine_bytes)),
        ("launches", lambda one: _whole(one.row.facts.launches)),
        ("layers", lambda one: _whole(one.row.facts.layers)),
        ("job, s", lambda one: f"{one.row.seconds:.0f}" if one.row.seconds else ""),
        ("timed on", lambda one: "" if one.place is None else where(seen, one.place)),
    ]
    if len(seen.places) < 2:
        columns.pop()
    shown = [(name, of) for name, of in columns if any(of(one) for one in engines)]
    return [name for name, _ in shown], [[of(one) for _, of in shown] for one in engines]


def where(seen: Overview, place: Place) -> str:
    """A place in words, with the number of its machine where there are several."""
    return place.text if len(seen.machines) == 1 else f"machine {place.machine}: {place.text}"


def timed_at(seen: Overview, chosen: Best) -> str:
    """Where the times of a choice are from: `batch 8`, with the place where engines were timed at several."""
    if chosen.place is None:
        return "not timed"
    return f"batch {chosen.batch}" + (f", {where(seen, chosen.place)}" if len(seen.places) > 1 else "")


def pick(chosen: Best, engine: Engine | None) -> str:
    """An engine that is the best in some way, with what makes it so: `int8 openvino: 1.5 ms, 78.10%, 3.2 MB`."""
    if engine is None:
        return ""
    ms, size = chosen.ms(engine), engine.row.facts.engine_bytes
    numbers = [
        None if ms is None else f"{ms:.3g} ms",
        None if engine.accuracy is None else f"{'' if engine.accuracy.share else 'error '}{engine.accuracy.text}",
        None if size is None else f"{megabytes(size)} MB",
        None if engine.verified else "not verified",
    ]
    return f"{engine.label}: {', '.join(one for one in numbers if one is not None)}"


def _jobs(document: Matrix) -> Verdict:
    counts, total = document.counts(), len(document.rows)
    left = sum(counts[state] for state in (CANCELLED, PENDING))
    done = total - left - counts[FAILED]
    line = f"{counts[FAILED]} of {_count(total, 'job')} failed" if counts[FAILED] else f"{done} of {total} jobs done"
    status = BAD if counts[FAILED] else MIXED if left or not total else GOOD
    return Verdict("Jobs", status, line, told(counts) or "The plan has none")


def _steps(document: Matrix, *names: str) -> Iterator[Step]:
    return (step for row in document.rows for step in row.steps if step.name in names)


def _correctness(document: Matrix) -> Verdict:
    topic, steps = "Correctness", [*_steps(document, VERIFY)]
    ran = [step for step in steps if step.found]
    wrong = sum(step.outcome == FAILED for step in ran)
    if not ran:
        return Verdict(topic, UNKNOWN, "Not verified", "No verify came to a result" if steps else "No job has a verify")
    if wrong:
        line = f"{wrong} of {_count(len(ran), 'engine')} computed something else than the network"
        return Verdict(topic, BAD, line, "See what failed")
    shares = [row.facts.of_budget for row in document.rows if row.facts.of_budget is not None]
    most = f"The largest error is {max(shares):.2g} of what is allowed" if shares else "No error is known"
    unrun = sum(number(step.found.get("error")) is None for step in ran)
    rest = len(document.rows) - len(ran)
    because = "; ".join([most, *([f"{unrun} were not run: their file is proved, not the engine"] if unrun else [])])
    line = f"{len(ran) - unrun} of {_count(len(document.rows), 'engine')} proved to compute what the network computes"
    return Verdict(topic, MIXED if unrun or rest else GOOD, line, because)


def _accuracy(document: Matrix) -> Verdict:
    topic, ran = "Accuracy", [step for step in _steps(document, EVALUATE) if step.found]
    if not ran:
        instead = "Errors that verify found stand in for it, where there are some"
        return Verdict(topic, UNKNOWN, "Not evaluated on data", instead)
    worse = sum(step.outcome == FAILED for step in ran)
    line = f"{_count(worse, 'engine') if worse else 'No engine'} found less accurate than the network"
    status = BAD if worse else GOOD if len(ran) == len(document.rows) else MIXED
    return Verdict(topic, status, line, f"{len(ran)} of {_count(len(document.rows), 'engine')} evaluated")


def _speed(document: Matrix, seen: Overview) -> Verdict:
    topic, timed = "Speed", [one for one in seen.engines if one.place is not None]
    if not timed:
        return Verdict(topic, UNKNOWN, "Not measured", "No bench and no regress came to a result")
    gated = [step for step in _steps(document, TIMED[1]) if step.found]
    failed = sum(step.outcome == FAILED for step in gated)
    places = seen.places
    told_places = "; ".join(where(seen, place) for place in places[:4]) + (" and others" if len(places) > 4 else "")
    apart = f"At {len(places)} places, whose times do not compare: " if len(places) > 1 else "On "
    line = f"{failed} of {len(gated)} did not pass regress" if failed else f"{_count(len(timed), 'engine')} timed"
    status = BAD if failed else GOOD if len(timed) == len(seen.engines) else MIXED
    return Verdict(topic, status, line, f"{apart}{told_places}")


def _limits(chosen: Sequence[Best], limits: Limits) -> Verdict:
    networks = list(dict.fromkeys(one.network for one in chosen))
    able = {one.network for one in chosen if one.within is not None}
    line = f"{len(able)} of {_count(len(networks), 'network')} can be had within the limits"
    status = GOOD if len(able) == len(networks) else MIXED if able else BAD
    return Verdict("Limits", status, line, f"{limits.sentence}; the {limits.wanted} is chosen")


def _changes(since: Changes) -> Verdict:
    counts = since.counts()
    worse, better = (any(kind in counts for kind in kinds) for kinds in (WORSE, BETTER))
    status = BAD if worse and not better else MIXED if worse or counts else GOOD
    line = told(counts) or "Nothing changed"
    return Verdict("Changes", status, line, f"{_count(since.compared, 'job')} held beside {since.earlier}")


def _time(batch: str) -> Callable[[Engine], str]:
    return lambda one: f"{one.times[batch]:.3g}" if batch in one.times else ""


def _error(row: Row) -> str:
    found = next((number(step.found.get("error")) for step in row.steps if step.name == VERIFY), None)
    return "" if found is None else f"{found:.1e}" if found else "0"


def _whole(value: int | None) -> str:
    return "" if value is None else str(value)


def _count(value: int, what: str) -> str:
    return f"{value} {what}{'' if value == 1 else 's'}"
