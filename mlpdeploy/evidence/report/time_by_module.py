"""Where the time goes, by module of the network: the per-layer times of a bench document, arranged for readers."""

from __future__ import annotations

from dataclasses import dataclass

from mlpdeploy.system.documents import Document


@dataclass(frozen=True)
class Spot:
    """One module at its place in the order of execution; `heat` is its time as a per cent of the longest one's."""

    path: str
    milliseconds: float
    heat: float


@dataclass(frozen=True)
class Row:
    """All modules of one kind (equal paths but for their numbers): how many, and their time before and after."""

    kind: str
    modules: int
    before: float | None
    after: float
    share: float


@dataclass(frozen=True)
class Times:
    """Both profiles as strips of spots, in the order of execution, and by kind of module, the longest first."""

    before: tuple[Spot, ...]
    after: tuple[Spot, ...]
    rows: tuple[Row, ...]
    total_before: float | None
    total_after: float


def times(before: Document | None, after: Document) -> Times:
    """Arrange the profiles of the plain export (`before`, None where it has none) and of the engine."""
    profiles = [profile for profile in (before, after) if profile is not None]
    longest = max((module["milliseconds"] for p in profiles for module in p["modules"]), default=0.0) or 1.0
    totals = [_by_kind(profile) for profile in (before, after)]
    kinds = dict.fromkeys([*totals[1], *totals[0]])
    rows = [
        Row(
            kind,
            max(len(total.get(kind, ())) for total in totals),
            None if before is None else sum(totals[0].get(kind, ())),
            sum(totals[1].get(kind, ())),
            sum(totals[1].get(kind, ())) / (after["milliseconds"] or 1.0),
        )
        for kind in kinds
    ]
    rows.sort(key=lambda row: (-row.after, -(row.before or 0.0)))
    strips = [
        () if profile is None
        else tuple(Spot(m["path"], m["milliseconds"], 100 * m["milliseconds"] / longest) for m in profile["modules"])
        for profile in (before, after)
    ]  # fmt: skip
    total = None if before is None else before["milliseconds"]
    return Times(strips[0], strips[1], tuple(rows), total, after["milliseconds"])


def kind_of(path: str) -> str:
    """A module's path with `*` for its numbers: `blocks.*.mlp.fc1`."""
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


def _by_kind(profile: Document | None) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for module in () if profile is None else profile["modules"]:
        found.setdefault(kind_of(module["path"]), []).append(module["milliseconds"])
    return found
