"""The same for what was found about an engine: a verification, and results of `bench` and `regress`."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from mlpdeploy.schema import Amount, Count, Positive, Size


class Budget(TypedDict):
    max_relative_error: Amount
    min_top1_agreement: Amount


class Comparison(TypedDict):
    max_relative: Amount | None


class Agreement(TypedDict):
    images: Count
    top1: Amount


class Check(TypedDict):
    batch: Size
    output: str
    reference: Comparison
    permuted: Comparison | None
    agreement: Agreement | None


class Images(TypedDict):
    reference: Comparison
    agreement: Agreement | None
    accuracy: Amount | None


class Stage(TypedDict):
    name: str
    status: str
    reason: str
    budget: Budget
    max_relative: Amount | None
    seconds: Amount
    checks: list[Check]
    images: Images | None


class Verification(TypedDict):
    """verification.json."""

    created: str
    files: dict[str, str]
    passed: bool
    verdict: str
    sizes: list[Size]
    rows: Count
    inputs: str
    seed: int
    reference_accuracy: Amount | None
    notes: list[str]
    stages: list[Stage]


class Ratio(TypedDict):
    value: Positive
    low: Positive
    high: Positive
    verdict: str


class Against(Ratio):
    baseline: str


class Phases(TypedDict):
    host_to_device_ms: Amount
    compute_ms: Amount
    device_to_host_ms: Amount
    end_to_end_ms: Amount
    uncaptured: str


class Contender(TypedDict):
    name: str
    kind: str
    what: str
    median_ms: Positive
    p90_ms: Positive
    p99_ms: Positive
    images_per_second: Positive
    medians_ms: list[Positive]
    ratios: list[Against]
    phases: NotRequired[Phases | None]


class Measurement(TypedDict):
    batch: Size
    contenders: list[Contender]
    host_clock: NotRequired[str]


class Limit(TypedDict):
    batch: Size
    macs: Count
    bytes: Size
    limit_ms: Positive
    bound: str
    percent_of_limit: dict[str, Amount]


class Roofline(TypedDict):
    dtype: str
    threads: Size
    peak_gmacs_per_second: Positive
    copy_gbytes_per_second: Positive
    limits: list[Limit]


class Module(TypedDict):
    path: str
    milliseconds: Amount
    share: Amount


class Profile(TypedDict):
    batch: Size
    profiler: str
    milliseconds: Amount
    modules: list[Module]


class Layers(TypedDict):
    before: Profile | None
    after: Profile | None
    reason: str


class Credit(Ratio):
    rule: str
    fired: Count
    batch: Size


class Conditions(TypedDict):
    before: dict[str, Any]
    after: dict[str, Any]


class Measured(TypedDict):
    created: str
    machine: dict[str, Any]
    conditions: Conditions
    settings: dict[str, Any]
    measurements: list[Measurement]
    roofline: Roofline | None
    layers: Layers
    credit: list[Credit] | None
    left_out: dict[str, str]


class Measurable(TypedDict):
    model_sha256: NotRequired[str]


class Bench(Measured):
    """bench.json, as a report reads it."""

    network: Measurable


class Named(TypedDict):
    name: str


class Accuracy(TypedDict):
    measure: str
    value: Amount
    stage: str
    inputs: str
    rows: Count


class Facts(TypedDict):
    engine_bytes: Count
    build_seconds: Amount | None
    layers: Count | None
    transposes: Count | None
    memory_bytes: Count | None
    accuracy: Accuracy | None
    reasons: dict[str, str]


class Side(TypedDict):
    """The candidate of a saved `regress` at one batch size."""

    batch: Size
    medians_ms: list[Positive]


class SavedBench(Measured):
    """A result of `bench` to hold a later run against."""

    network: Named
    facts: Facts


class SavedRegress(TypedDict):
    """A result of `regress` to hold a later run against."""

    created: str
    network: Named
    machine: dict[str, Any]
    settings: dict[str, Any]
    facts: Facts
    measurements: list[Side]
