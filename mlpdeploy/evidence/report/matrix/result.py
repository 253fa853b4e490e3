"""One result of a matrix, for every form that it is shown in: a table, a page, JSON, Markdown."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from mlpdeploy.evidence.documents.matrix import Matrix
from mlpdeploy.evidence.report.matrix.best import Best, Limits, best
from mlpdeploy.evidence.report.matrix.changes import Changes
from mlpdeploy.evidence.report.matrix.engines import Overview, overview

NO_LIMITS = Limits()


@dataclass(frozen=True)
class Result:
    """A document, the limits that engines are chosen by, and what changed since an earlier run where one is given."""

    document: Matrix
    limits: Limits = NO_LIMITS
    since: Changes | None = None

    @cached_property
    def seen(self) -> Overview:
        """The document's rows by network."""
        return overview(self.document)

    @cached_property
    def best(self) -> tuple[Best, ...]:
        """The best engines of each network."""
        return best(self.seen, self.limits)

    def to_json(self) -> dict[str, Any]:
        """The document, with `limits` and `best`, and with `changes`, where these were asked for."""
        found = self.document.to_json()
        if self.limits:
            found |= {"limits": asdict(self.limits), "best": [one.to_json() for one in self.best]}
        if self.since is not None:
            found["changes"] = self.since.to_json()
        return found
