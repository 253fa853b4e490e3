"""What searches have decided: which rules, forms and settings of the engine's compiler pay for a graph, in an engine,
on a device; kept for later builds.

    <out>/decisions.json          of searches whose engines lie there (`mlpdeploy build NAME --search --tactics`)
    artifact/decided.json         those that come with mlpdeploy, which its benchmarks have measured

An entry counts only where all of its `Case` is the same: what pays elsewhere is a guess. The file may be copied to
other folders and machines, and kept in a repository. A name that this mlpdeploy does not know is left alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy.artifact import store
from mlpdeploy.artifact.schema import DECISIONS
from mlpdeploy.engine import build_route, form, host, nvidia
from mlpdeploy.engine.backend import Backend
from mlpdeploy.selection import Selection
from mlpdeploy.selection.checks import rule_names
from mlpdeploy.system import documents

if TYPE_CHECKING:
    from mlpdeploy.graph.tracing.trace import Traced

FILE, SHIPPED = "decisions.json", Path(__file__).with_name("decided.json")
SCHEMA = 1
LEFT_OUT, PUT_IN, SET = "left out", "put in", "set"
KEPT, NO_BETTER, UNDECIDED, REFUSED, UNTRIED = "kept", "no better", "undecided", "refused", "no time"
BY_TIME, BY_STRUCTURE = "time", "structure"
NO_DEVICE = "not executed"
"""The device of a decision that was taken by the engine's structure, where its engines cannot run."""


@dataclass(frozen=True)
class Case:
    """What a decision holds for: `batch` is a range of sizes, `graph` the operations without the weights."""

    graph: str
    backend: str
    versions: Mapping[str, str]
    device: str
    precision: str
    batch: str


@dataclass(frozen=True)
class Effort:
    """Seconds that are asked for: to `search` rules and forms, and to try `tactics`, which are build routes.

    None asks for nothing.
    """

    search: float | None = None
    tactics: float | None = None


NONE = Effort()


@dataclass(frozen=True)
class Ratio:
    """Time over that of the engine before the change; a bound is None where too few pairs tell none."""

    value: float
    low: float | None
    high: float | None

    @property
    def said(self) -> str:
        """In words: `0.945 (below 0.953)`."""
        bounds = [f"{word} {bound:.3f}" for word, bound in (("above", self.low), ("below", self.high)) if bound]
        return f"{self.value:.3f}" + (f" ({', '.join(bounds)})" if bounds else "")


@dataclass(frozen=True)
class Trial:
    """A rule, form or setting other than by default: `change`, what came of it, and `why` where that is no ratio."""

    name: str
    change: str
    verdict: str
    ratio: Ratio | None = None
    pairs: int = 0
    why: str = ""

    @property
    def result(self) -> str:
        """The verdict, and why."""
        return f"{self.verdict}: {self.why}" if self.why else self.verdict

    @property
    def said(self) -> str:
        """What came of it, in words: `0.945 (below 0.953) of the time, kept`."""
        return self.result if self.ratio is None else f"{self.ratio.said} of the time, {self.result}"


@dataclass(frozen=True)
class Decision:
    """What a search found for a network at a batch size, each trial in order; judged by time, or by structure.

    `seconds` were taken by rules and forms, `tactics` by build routes; 0 says that these were not searched.
    """

    network: str
    created: str
    judged_by: str
    batch: int
    seconds: float
    trials: tuple[Trial, ...]
    tactics: float = 0.0

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Decision:
        """What `asdict` gives."""
        trials = tuple(Trial(**{**one, "ratio": one["ratio"] and Ratio(**one["ratio"])}) for one in values["trials"])
        return cls(**{**values, "trials": trials})

    def of(self, routes: bool) -> tuple[Trial, ...]:
        """The trials of build routes, or all others."""
        return tuple(trial for trial in self.trials if (trial.change == SET) == routes)

    def settled(self, routes: bool, seconds: float) -> bool:
        """Whether all build routes, or all else, were tried, or for so many seconds."""
        taken = self.tactics if routes else self.seconds
        whole = all(trial.verdict != UNTRIED for trial in self.of(routes))
        return taken > 0 and (whole or taken >= seconds)

    def kept(self, change: str) -> tuple[str, ...]:
        """The rules and forms that are left out, or put in; or the words of the build route that are set."""
        return tuple(one.name for one in self.trials if one.verdict == KEPT and one.change == change)


def case_of(selection: Selection, backend: Backend, graph: str) -> Case:
    """The case of a build, whose graph `structure` gives."""
    low = 1 << selection.profile.opt.bit_length() - 1
    batch = str(low) if low == 1 else f"{low}-{2 * low - 1}"
    device = _device(backend, selection)
    return Case(graph, backend.name, backend.versions(), device, selection.precision, batch)


def structure(traced: Traced) -> str:
    """The hash of a traced network's operations, with the shapes and dtypes of its numbers, whatever these are."""
    from mlpdeploy.graph.editor import weight

    digest = hashlib.sha256(f"{[(spec.shape, spec.dtype) for spec in traced.inputs]}\0{traced.module.graph}".encode())
    for node in traced.module.graph.nodes:
        if (tensor := weight(traced.module, node)) is not None:
            digest.update(f"{node.target} {tuple(tensor.shape)} {tensor.dtype}\0".encode())
    return digest.hexdigest()


def remembered(out: Path, case: Case) -> Decision | None:
    """What was decided for a case. Raises ArtifactError where the file of decisions in `out` cannot be used."""
    for path in (out / FILE, SHIPPED):
        for entry in read(path):
            if entry["case"] == asdict(case):
                return Decision.from_json(entry["decision"])
    return None


def remember(out: Path, case: Case, decision: Decision) -> Path:
    """Keep a decision, in the place of an earlier one. Raises InputError where the file cannot be written."""
    path = out / FILE
    with store.locked(path):
        others = [entry for entry in read(path) if entry["case"] != asdict(case)]
        return write(path, [*others, {"case": asdict(case), "decision": asdict(decision)}])


def copy(out: Path, other: Path) -> None:
    """What was decided counts in another folder too."""
    if entries := read(out / FILE):
        write(other / FILE, entries)


def write(path: Path, entries: Iterable[Mapping[str, Any]]) -> Path:
    """A file of decisions."""
    return store.place(path, json.dumps({"schema": SCHEMA, "decisions": [*entries]}, indent=1, allow_nan=False) + "\n")


def suffices(decision: Decision | None, effort: Effort) -> bool:
    """Whether there is nothing to search with so much effort: nothing is asked, all was tried, or it took as long."""
    asked = ((routes, seconds) for routes, seconds in ((False, effort.search), (True, effort.tactics)) if seconds)
    return all(decision is not None and decision.settled(routes, seconds) for routes, seconds in asked)


def applied(selection: Selection, decision: Decision | None) -> Selection:
    """The selection with what was decided; what it says itself counts more."""
    if decision is None:
        return selection
    open_to_choice = {*rule_names(), *form.names()} - {*selection.disabled_rules, *selection.enabled_rules}
    without, extra = (tuple(open_to_choice & {*decision.kept(change)}) for change in (LEFT_OUT, PUT_IN))
    words = (word for word in decision.kept(SET) if build_route.WORD.fullmatch(word))
    return replace(
        selection,
        route=build_route.joined(*words, selection.route),
        disabled_rules=(*selection.disabled_rules, *without),
        enabled_rules=(*selection.enabled_rules, *extra),
    )


def described(case: Case, decision: Decision | None) -> dict[str, Any]:
    """What a manifest says of it."""
    return {"case": asdict(case), "decision": None if decision is None else asdict(decision)}


def of_manifest(manifest: Mapping[str, Any]) -> Decision | None:
    """What an artifact was built by."""
    found = (manifest.get("decided") or {}).get("decision")
    return None if found is None else Decision.from_json(found)


def stands(manifest: Mapping[str, Any], selection: Selection, backend: Backend, effort: Effort = NONE) -> bool:
    """Whether an artifact was built by what is decided now, and nothing is to be searched with so much effort."""
    if "decided" not in manifest:
        return False
    case, built_by = case_of(selection, backend, manifest["decided"]["case"]["graph"]), of_manifest(manifest)
    return remembered(selection.out, case) == built_by and suffices(built_by, effort)


def read(path: Path) -> list[dict[str, Any]]:
    """The cases and decisions of a file, the other way of `write`; none where there is no such file."""
    if not os.path.lexists(path):
        return []
    document = documents.read(path, DECISIONS, "remove it, and search again") or {"decisions": []}
    found: list[dict[str, Any]] = document["decisions"]
    return found


def _device(backend: Backend, selection: Selection) -> str:
    gpu = backend.gpu(selection.gpus)
    if gpu is not None:
        return gpu.name
    if backend.executable() is not None:
        return NO_DEVICE
    here = nvidia.probe()
    if backend.device({}) == "cuda" and isinstance(here, nvidia.Gpu):
        return here.name
    return f"{host.cpu_model()}, {host.cores()} cores"
