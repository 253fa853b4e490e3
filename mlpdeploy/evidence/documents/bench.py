"""The document of `mlpdeploy bench`: an engine beside its rivals, the machine's limit, and where the time goes.

Every number is a measurement of this session; what was not measured is None, with the reason.
"""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from mlpdeploy.artifact import schema
from mlpdeploy.errors import InputError
from mlpdeploy.evidence.latency.timing import Ratio, Timings
from mlpdeploy.system import documents

SCHEMA = 1
BENCH, REGRESS = "bench", "regress"
"""The kinds of document that a later run can be held against."""

ENGINE, EAGER, COMPILE, MAX_AUTOTUNE, EXPORT = "engine", "eager", "compile", "max-autotune", "export"


@dataclass(frozen=True)
class Against:
    """A contender's median latency over that of the baseline; below 1 is faster."""

    baseline: str
    ratio: Ratio

    def to_json(self) -> dict[str, Any]:
        """With the verdict: faster, slower or undecided."""
        return {"baseline": self.baseline, **asdict(self.ratio), "verdict": self.ratio.verdict}


@dataclass(frozen=True)
class DevicePhases:
    """Medians of a call's parts on a GPU's clock, and of the whole from the first copy to the last.

    `uncaptured` is why no CUDA graph did the computing, "" where one did.
    """

    host_to_device_ms: float
    compute_ms: float
    device_to_host_ms: float
    end_to_end_ms: float
    uncaptured: str

    @classmethod
    def of(cls, taken: Timings, name: str) -> DevicePhases | None:
        """Those of one contender; None where it was timed on the host's clock."""
        found = taken.phases_of(name)
        if found is None:
            return None
        copy_in, compute, copy_out = (1e3 * seconds for seconds in astuple(found))
        return cls(copy_in, compute, copy_out, 1e3 * taken.end_to_end(name), taken.uncaptured[name])


@dataclass(frozen=True)
class ContenderTimes:
    """One thing that was timed, at one batch size.

    `kind` is engine, eager, compile, max-autotune, export, or recipe for another network's engine. Times are
    milliseconds a call over `samples` rounds; `medians_ms` has the median of each sitting, for which everything was
    loaded anew. Where they were taken on a GPU's clock they are those of the computing, and so are the ratios; `phases`
    has the copies too.
    """

    name: str
    kind: str
    what: str
    median_ms: float
    p90_ms: float
    p99_ms: float
    images_per_second: float
    samples: int
    calls_a_sample: int
    medians_ms: tuple[float, ...]
    against: tuple[Against, ...]
    phases: DevicePhases | None = None

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON values; `ratios` are those against each baseline."""
        values = asdict(self)
        del values["against"]
        values["medians_ms"] = list(self.medians_ms)
        return {**values, "ratios": [one.to_json() for one in self.against]}


@dataclass(frozen=True)
class Measurement:
    """Every contender at one batch size, all of them interleaved within each sitting.

    `host_clock` is why a GPU's work was timed on the host's clock, copies included; "" where it was not.
    """

    batch: int
    contenders: tuple[ContenderTimes, ...]
    host_clock: str = ""

    def to_json(self) -> dict[str, Any]:
        """The contenders in the order in which they were named, the engine first."""
        contenders = [contender.to_json() for contender in self.contenders]
        return {"batch": self.batch, "contenders": contenders, "host_clock": self.host_clock}


@dataclass(frozen=True)
class Limit:
    """The roofline at one batch size: the engine cannot be faster than `limit_ms` with the rates that were measured.

    `macs` are multiply-accumulates of projections and convolutions; `bytes` are all weights once, the inputs and the
    outputs once: what any engine has to move. `bound` says which of the two takes longer, compute or memory.
    """

    batch: int
    macs: int
    bytes: int
    limit_ms: float
    bound: str
    percent_of_limit: dict[str, float]


@dataclass(frozen=True)
class Roofline:
    """What this machine can do with the engine's dtype and threads, measured in the same session."""

    dtype: str
    threads: int
    peak_gmacs_per_second: float
    copy_gbytes_per_second: float
    limits: tuple[Limit, ...]

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON values."""
        return {**asdict(self), "limits": [asdict(limit) for limit in self.limits]}


@dataclass(frozen=True)
class Module:
    """The time that one module of the network takes, by type of the engine's layers."""

    path: str
    milliseconds: float
    share: float
    layers: dict[str, float]


@dataclass(frozen=True)
class Profile:
    """Time by module, in the order of execution, as the engine's own profiler tells it: the sum of its layers."""

    batch: int
    profiler: str
    milliseconds: float
    modules: tuple[Module, ...]

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON values."""
        return {**asdict(self), "modules": [asdict(module) for module in self.modules]}


@dataclass(frozen=True)
class Layers:
    """Per-layer times: `before` of the plain export, `after` of our engine; None with `reason` where not measured."""

    before: Profile | None
    after: Profile | None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON values."""
        before, after = (None if one is None else one.to_json() for one in (self.before, self.after))
        return {"before": before, "after": after, "reason": self.reason}


@dataclass(frozen=True)
class Credit:
    """What one rule is worth: latency without the rule over latency with it; above 1 the rule pays."""

    rule: str
    fired: int
    batch: int
    worth: Ratio

    def to_json(self) -> dict[str, Any]:
        """With the verdict in words: pays, costs or undecided."""
        verdict = {"faster": "costs", "slower": "pays"}.get(self.worth.verdict, self.worth.verdict)
        values = {"rule": self.rule, "fired": self.fired, "batch": self.batch}
        return {**values, **asdict(self.worth), "verdict": verdict}


@dataclass(frozen=True)
class Bench:
    """One run of `mlpdeploy bench`.

    `network` says what ran (name, family, parameters, weights in words), `machine` is the fingerprint, `conditions`
    what could disturb, before and after. `facts` are those of `engine_facts`. `left_out` names contenders that this
    machine cannot run, with the reason. `credit` is None where it was not asked for.
    """

    created: str
    network: dict[str, Any]
    selection: dict[str, Any]
    machine: dict[str, Any]
    conditions: dict[str, Any]
    settings: dict[str, Any]
    facts: dict[str, Any]
    measurements: tuple[Measurement, ...]
    roofline: Roofline | None
    layers: Layers
    credit: tuple[Credit, ...] | None
    left_out: dict[str, str]

    def __repr__(self) -> str:
        sizes = (
            f"batch {one.batch}: " + ", ".join(f"{each.name} {each.median_ms:.3g} ms" for each in one.contenders)
            for one in self.measurements
        )
        return f"<Bench of {self.network['name']}, {'; '.join(sizes)}>"

    def to_json(self) -> dict[str, Any]:
        """The whole document as JSON values, its kind and schema first."""
        return {
            "kind": BENCH,
            "schema": SCHEMA,
            "created": self.created,
            "network": self.network,
            "selection": self.selection,
            "machine": self.machine,
            "conditions": self.conditions,
            "settings": self.settings,
            "facts": self.facts,
            "measurements": [one.to_json() for one in self.measurements],
            "roofline": None if self.roofline is None else self.roofline.to_json(),
            "layers": self.layers.to_json(),
            "credit": None if self.credit is None else [one.to_json() for one in self.credit],
            "left_out": self.left_out,
        }


def read(path: Path) -> dict[str, Any]:
    """A saved document of bench or regress. Raises InputError, one line, where it is missing or cannot be used."""
    called = "`mlpdeploy bench` or `mlpdeploy regress`"
    document = documents.saved(path, [BENCH, REGRESS], SCHEMA, called, "measure it again")
    kind = schema.SAVED_BENCH if document["kind"] == BENCH else schema.SAVED_REGRESS
    if (problem := documents.wrong(document, kind)) is not None:
        raise InputError(f"{path}: is damaged or of another version ({problem}): measure it again")
    return document
