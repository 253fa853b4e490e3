"""A part of a plan's jobs: the same on every machine, and as much work as the other parts."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mlpdeploy.errors import InputError
from mlpdeploy.matrix.job import Job
from mlpdeploy.zoo.recipe import recipes


def parse(text: str) -> tuple[int, int]:
    """3/16, the third of sixteen parts, as numbers. Raises InputError where it is none."""
    found = re.fullmatch(r"([0-9]{1,5})/([0-9]{1,5})", text.strip())
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--shard {text!r}: give INDEX/COUNT, such as 3/16; the first is 1/16, the last 16/16")
    return int(found[1]), int(found[2])


def part(jobs: Sequence[Job], index: int, count: int) -> tuple[Job, ...]:
    """The jobs of one part, in the order of the plan; every job is in one part, and parts differ by one job at most.

    The jobs are dealt out from the dearest to the cheapest, forth and back.
    """
    order = sorted(range(len(jobs)), key=lambda place: (-_work(jobs[place]), place))
    mine = {place for turn, place in enumerate(order) if _dealt_to(turn, count) == index - 1}
    return tuple(job for place, job in enumerate(jobs) if place in mine)


def _dealt_to(turn: int, count: int) -> int:
    around, place = divmod(turn, count)
    return count - 1 - place if around % 2 else place


def _work(job: Job) -> float:
    """What a job may cost beside others: multiplications of the network, where they were counted, times commands."""
    known = recipes().get(job.selection.name)
    return len(job.steps) * (0.0 if known is None else known.gmacs or 0.0)
