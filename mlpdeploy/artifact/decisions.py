"""What searches have decided: which rules, forms and settings of the engine's compiler pay for a graph, in an engine,
on a device; kept for later builds.

    <out>/decisions.json          of searches whose engines lie there (`mlpdeploy build NAME --search --tactics`)
    artifact/decided.json         those that come with mlpdeploy, which its benchmarks have measured

An entry counts only where all of its `Case` is the same, and rules that were chosen by hand when it was searched for
are chosen again: what pays elsewhere is a guess. The file may be copied to other folders and machines, and kept in a
repository. A name that this mlpdeploy does not know is left alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy.artifact import store
from mlpdeploy.artifact.schema import DECISIONS
from mlpdeploy.engine import build_route, form, host, nvidia
from mlpdeploy.engine.backend import Backend, backends
from mlpdeploy.errors import ArtifactError
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
"""The device of a decision that was taken by the engine's structure, where its engines cannot run; then the GPUs that
they are for, where some are named."""


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

    `seconds` were taken by rules and forms, `tactics` by build routes; 0 says that these were not searched. What was
    found holds on top of the changes that the selection said itself (`beside`), which were not tried.
    """

    network: str
    created: str
    judged_by: str
    batch: int
    seconds: float
    trials: tuple[Trial, ...]
    tactics: float = 0.0
    beside: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Decision:
        """What `asdict` gives, and what another version has beside that is left alone."""
        known = {name: values[name] for name in _names(cls) if name in values}
        return cls(**known | {"trials": (*map(_trial, values["trials"]),), "beside": (*values.get("beside", ()),)})

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

    def kept_in_words(self) -> str:
        """What was decided to be other than by default: `pick_parts left out, gather_shifts put in`."""
        return ", ".join(f"{one.name} {one.change}" for one in self.trials if one.verdict == KEPT)


def _names(kind: type) -> Iterator[str]:
    return (one.name for one in fields(kind))


def _trial(values: Mapping[str, Any]) -> Trial:
    ratio = values["ratio"] and Ratio(**{name: values["ratio"][name] for name in _names(Ratio)})
    return Trial(**{name: values[name] for name in _names(Trial)} | {"ratio": ratio})


def said_by(selection: Selection) -> tuple[str, ...]:
    """The changes that a selection says itself, each in words."""
    words = ((selection.disabled_rules, LEFT_OUT), (selection.enabled_rules, PUT_IN), (selection.route.split(), SET))
    return tuple(sorted(f"{name} {change}" for names, change in words for name in names))


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


def remembered(selection: Selection, case: Case) -> Decision | None:
    """What was decided for a case. Raises ArtifactError where the file of decisions of a selection cannot be used."""
    return found(selection, case)[0]


def found(selection: Selection, case: Case) -> tuple[Decision | None, Path]:
    """What was decided for a case, and the file that has it: of the folder of artifacts, then what mlpdeploy brings.

    Of several, what was decided beside most of what the selection says itself.
    """
    said = {*said_by(selection)}
    for path in (selection.out / FILE, SHIPPED):
        entries = (Decision.from_json(one["decision"]) for one in read(path) if one["case"] == asdict(case))
        fitting = [one for one in entries if said.issuperset(one.beside)]
        if fitting:
            return max(fitting, key=lambda one: len(one.beside)), path
    return None, selection.out / FILE


def remember(out: Path, case: Case, decision: Decision) -> Path:
    """Keep a decision, in the place of an earlier one. Raises InputError where the file cannot be written."""
    path, entry = out / FILE, json.loads(json.dumps(described(case, decision)))
    with store.locked(path):
        others = [one for one in read(path) if _place(one) != _place(entry)]
        return write(path, [*others, entry])


def _place(entry: Mapping[str, Any]) -> tuple[Any, Any]:
    return entry["case"], entry["decision"].get("beside", [])


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
    """The selection with what was decided; what it says itself counts more, and what its engine needs stays."""
    if decision is None:
        return selection
    backend, said = backends().get(selection.backend), {*selection.disabled_rules, *selection.enabled_rules}
    closed = said if backend is None else said | form.needed(backend.forms)
    rules, kept = {*rule_names()} - closed, {change: {*decision.kept(change)} for change in (LEFT_OUT, PUT_IN)}
    without, extra = ({*form.names()} - closed | rules) & kept[LEFT_OUT], rules & kept[PUT_IN] - kept[LEFT_OUT]
    words = (word for word in decision.kept(SET) if build_route.WORD.fullmatch(word))
    return replace(
        selection,
        route=build_route.joined(*words, selection.route),
        disabled_rules=(*selection.disabled_rules, *without),
        enabled_rules=(*selection.enabled_rules, *extra),
    )


def described(case: Case, decision: Decision | None) -> dict[str, Any]:
    """What a manifest says of it; `beside` only where there is something, which older versions do not know."""
    told = None if decision is None else asdict(decision)
    if told is not None and not told["beside"]:
        del told["beside"]
    return {"case": asdict(case), "decision": told}


def of_manifest(manifest: Mapping[str, Any]) -> Decision | None:
    """What an artifact was built by."""
    found = (manifest.get("decided") or {}).get("decision")
    return None if found is None else Decision.from_json(found)


def stands(manifest: Mapping[str, Any], selection: Selection, backend: Backend, effort: Effort = NONE) -> bool:
    """Whether an artifact was built by what is decided now, and nothing is to be searched with so much effort."""
    if "decided" not in manifest:
        return False
    case, built_by = case_of(selection, backend, manifest["decided"]["case"]["graph"]), of_manifest(manifest)
    return remembered(selection, case) == built_by and suffices(built_by, effort)


def read(path: Path) -> list[dict[str, Any]]:
    """The cases and decisions of a file, the other way of `write`; none where there is no such file."""
    if not os.path.lexists(path):
        return []
    again = "remove it, and search again"
    document = documents.read(path, {"schema": object}, again) or {"schema": SCHEMA, "decisions": []}
    if document["schema"] != SCHEMA:
        raise ArtifactError(f"{path} has schema {document['schema']}, this mlpdeploy reads {SCHEMA}: {again}")
    if (problem := documents.wrong(document, DECISIONS)) is not None:
        raise ArtifactError(f"{path} is damaged or of another version ({problem}): {again}")
    entries: list[dict[str, Any]] = document["decisions"]
    return entries


def _device(backend: Backend, selection: Selection) -> str:
    gpu = backend.gpu(selection.gpus)
    if gpu is not None:
        return gpu.name
    if backend.executable() is not None:
        return f"{NO_DEVICE}, for {', '.join(sorted(selection.gpus))}" if selection.gpus else NO_DEVICE
    here = nvidia.probe()
    if backend.device({}) == "cuda" and isinstance(here, nvidia.Gpu):
        return here.name
    return f"{host.cpu_model()}, {host.cores()} cores"
