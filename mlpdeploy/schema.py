"""What the documents beside an engine hold, as types: `documents.check` holds what is read from a disk against these.

Only what some command uses is here; a document may hold more. What a type here allows, every command can print,
compare and compute with.
"""

from __future__ import annotations

from typing import Annotated, Any, NotRequired, TypedDict

from mlpdeploy.selection import Selection


class AtLeast:
    """Of a number: not below `least`, or with `above`, above it."""

    def __init__(self, least: float, *, above: bool = False) -> None:
        self.least, self.above = least, above

    def refuses(self, value: Any) -> str | None:
        """None where the value is allowed, else what it has to be."""
        if value > self.least or (value == self.least and not self.above):
            return None
        return f"{'above' if self.above else 'at least'} {self.least:g}"


Count = Annotated[int, AtLeast(0)]
Size = Annotated[int, AtLeast(1)]
Amount = Annotated[float, AtLeast(0)]
Positive = Annotated[float, AtLeast(0, above=True)]


class Batch(TypedDict):
    min: Size
    opt: Size
    max: Size


class Port(TypedDict):
    """Of an engine, the shape without the batch; of a manifest, with `batch` in front."""

    name: str
    shape: list[int | str]
    dtype: str
    low: NotRequired[float | None]
    high: NotRequired[float | None]


class File(TypedDict):
    bytes: Count
    sha256: str


class Recipe(TypedDict):
    name: str
    family: str
    source: str
    parameters: Count


class Weights(TypedDict):
    text: str
    random: bool
    sha256: NotRequired[str]


class Network(TypedDict):
    """The traced network, as `cache.network` tells it."""

    operations: str
    tensors: str
    by: str


class Place(TypedDict):
    where: str
    reason: str


class Transpose(Place):
    permutation: str


class Kept(TypedDict):
    node: str
    module: str
    reason: str


class Rule(TypedDict):
    name: str
    fired: Count
    refused: list[Place]
    seconds: Amount


class Operations(TypedDict):
    before: dict[str, Count]
    after: dict[str, Count]


class Layers(TypedDict):
    layers: Count
    transposes: Count


class Body(TypedDict):
    function: str
    counts: Layers


class Parsed(TypedDict):
    """The network that TensorRT parsed."""

    total: Layers
    outside: Layers
    bodies: list[Body]
    dtypes: dict[str, dict[str, Count]]


class Launches(TypedDict):
    total: Count
    by_kind: dict[str, Count]
    source_bytes: Count


class Plugin(TypedDict):
    used: bool
    reason: str | None
    milliseconds: dict[str, Amount]


class Facts(TypedDict):
    """What a backend says of the engine that it built."""

    backend: str
    precision: str
    inputs: list[Port]
    outputs: list[Port]
    batch: list[Size]
    versions: dict[str, str]
    engine_bytes: Count
    engine_sha256: str
    build_seconds: Amount
    threads: NotRequired[Size | None]
    executed: NotRequired[str]
    device: NotRequired[str]
    cpu: NotRequired[str]
    gpu: NotRequired[str | None]
    gpus: NotRequired[list[str]]
    parsed: NotRequired[Parsed]
    launches: NotRequired[Launches | None]
    plugin: NotRequired[Plugin]


class Point(TypedDict):
    kept: Count
    int8_macs: float
    sqnr_db: float | None
    top1: float | None


class Ranked(TypedDict):
    node: str
    module: str
    macs: Count
    sqnr_db: float | None
    top1: float | None


class Medians(TypedDict):
    int8: Positive
    fp16: Positive
    fp32: Positive


class Beside(TypedDict):
    median_ms: Medians


class Worth(TypedDict):
    batch: Size
    backends: dict[str, Beside]
    not_measured: dict[str, str]
    verdicts: list[str]


class Int8(TypedDict):
    calibrator: str
    sqnr_db: dict[str, float]
    data: str
    rows: Count
    random: bool
    warning: str | None
    equalised: Count
    beside: str
    sites: Count
    of_sites: Count
    residuals: NotRequired[Count]
    share_of_macs: float
    kept: list[Kept]
    refused: list[Kept]
    curve: list[Point]
    ranked: list[Ranked]
    worth: NotRequired[Worth | None]


class Manifest(TypedDict):
    schema: int
    key: str | None
    created: str
    recipe: Recipe
    selection: Selection
    weights: Weights
    network: NotRequired[Network]
    precision: str
    batch: Batch
    inputs: list[Port]
    outputs: list[Port]
    backend: str
    engine: str
    versions: dict[str, str]
    gpus: list[str]
    facts: Facts
    rules: list[Rule]
    transposes: list[Transpose]
    kept_fp32: list[Kept]
    int8: NotRequired[Int8 | None]
    ops: Operations
    dtypes: dict[str, dict[str, Count]]
    seconds: dict[str, Amount]
    files: dict[str, File]
    seal: NotRequired[str]


class Operation(TypedDict):
    name: str
    op: str
    module: str
    dtype: str
    shape: list[int | str]
    inputs: list[str]


class Graph(TypedDict):
    """graph.json."""

    before: list[Operation]
    after: list[Operation]
