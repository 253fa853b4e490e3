"""What an inference engine is to mlpdeploy: one small protocol, and the table of those that exist."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

from mlpdeploy.engine import backends as _package
from mlpdeploy.engine.runner import AS_CALLED, Arrays, Loading, Runner
from mlpdeploy.errors import InputError, MachineLacks

if TYPE_CHECKING:
    import onnx

    from mlpdeploy.engine.batch import Batch
    from mlpdeploy.engine.form import Form, Prepared
    from mlpdeploy.engine.nvidia import Gpu
    from mlpdeploy.engine.onnx.emit import Emitted

MODEL, LAYERS = "model.onnx", "layers.json"
"""Beside an engine: the file that it was made of, and the layers of one of TensorRT's, as its inspector tells them."""

ITSELF = "(the network itself)"
"""What stands for the path of a network's own operations, which are in no module of it."""


def module_of(node: str) -> str:
    """The path of the module that a node of our ONNX file is of: `<path>/<operation>`, or `<operation>` alone.

    What a form puts in the place of a node has the node's name and a word or number behind it; operations begin with a
    capital, but those of our own functions.
    """
    path, _, rest = node.partition("/")
    return path if rest[:1].isupper() or rest.startswith("segment_grouped_projection") else ITSELF


# What `auto` tries, best first: an engine for this machine's GPU, one that builds without a GPU, then CPU engines.
AUTO = ("tensorrt", "tensorrt-rtx", "openvino", "onnxruntime", "inductor")


@dataclass(frozen=True)
class BuildRequest:
    """What a backend is asked to build: the batch profile, the precision, and the GPUs (empty: this machine's).

    `level` is TensorRT's builder optimisation level (0 to 5; None: its default). `threads` is how many threads one
    operation of a CPU engine uses (None: the engine's default). A backend ignores the one that is not its own.
    `plugin` says whether a TensorRT engine carries our plugins: "on", "off", or "auto", which keeps the faster way.
    `disabled` are forms of the file to leave out, by name. `features` are what else an engine of TensorRT's shall be,
    `timing_cache` a file of kernels' times in the place of the user's own, `route` settings of its compiler (see
    `build_route`). `before` is the artifact of this user that the build replaces: what of it still holds may be kept.
    """

    precision: str
    batch: Batch
    gpus: tuple[str, ...] = ()
    level: int | None = None
    threads: int | None = None
    plugin: str = "auto"
    disabled: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    timing_cache: Path | None = None
    route: str = ""
    before: Path | None = None


class Progress(Protocol):
    """Receives what a long build is doing; the command line draws it."""

    def step(self, phase: str, done: int, total: int) -> None:
        """`done` of `total` steps of `phase` are finished."""


@dataclass(frozen=True)
class Built:
    """An engine on disk, the facts about it that the manifest keeps (JSON values only), and the file it was made of."""

    engine: Path
    prepared: Prepared
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerTime:
    """A layer of an engine: type and name in its own words, the seconds of each call, and what it was made of."""

    type: str
    name: str
    times: tuple[float, ...]
    origins: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """The median."""
        return median(self.times)


class Backend(Protocol):
    """One inference engine. A file in `backends/` defines `BACKEND`, an object with these members."""

    name: str
    engine_file: str
    code: str | None
    """What its engines hold that runs as a program where they are loaded, in words; None where they are data alone."""
    multiplied: tuple[str, ...]
    """The precisions whose 8-bit codes it multiplies as they are; of others it multiplies what they stand for."""
    packages: tuple[str, ...]
    """The distributions that its engines depend on."""
    forms: tuple[Form, ...]
    """What its file is made of, in the order in which they run."""
    off: tuple[str, ...]
    """Rules of the graph that do not run for it unless they are asked for: there they cost more than they save."""

    reads_file: bool
    """Whether its engine is made of the ONNX file; of the graph where not."""
    has_levels: bool
    """Whether its builder has optimisation levels."""
    has_profiles: bool
    """Whether its engines can have several optimisation profiles."""
    times_kernels: bool
    """Whether it keeps, from build to build, the times of kernels."""
    has_routes: bool
    """Whether its builder takes build routes (see `build_route`)."""
    fuses_codes: bool
    """Whether what follows a product of 8-bit codes runs within its launch."""

    def off_for(self, gpus: Collection[str] = ()) -> tuple[str, ...]:
        """`off`, and what else is off in an engine for these GPUs."""

    def carries_kernel(self, gpus: Collection[str] = ()) -> bool:
        """Whether its engines for these GPUs carry our kernel with its epilogues, where that was measured faster."""

    def available(self) -> str | None:
        """None where this machine can build with it, else one line: why not, and what to install."""

    def executable(self) -> str | None:
        """None where this machine can run its engines, else one line: why not."""

    def without_gpu(self) -> str | None:
        """Of a backend that may use a GPU, and need not: one line, why it cannot here; None where it can."""

    def supports(self, precision: str, gpus: Collection[str] = ()) -> str | None:
        """None where it builds engines of that precision, for those GPUs; else one line: why not, and what to do.

        Raises MachineLacks where these are this machine's, and it has none that can be used.
        """

    def beside(self, precision: str) -> str | None:
        """The precision of what lies between products of 8-bit codes; None of another precision."""

    def plugins(self) -> str | None:
        """None where its engines can carry TensorRT plugins, else one line: why not."""

    def lacking(self, feature: str, precision: str) -> str | None:
        """None where its engines can have a feature (see `features`), else one line: why not.

        Raises MachineLacks where they can, and this machine cannot build them.
        """

    def routes(self) -> tuple[str, ...]:
        """The settings of its compiler other than by default, each a build route of one word; () where it has none.

        Raises MachineLacks where the library that is installed, or this machine, offers none.
        """

    def versions(self) -> dict[str, str]:
        """The versions that an engine depends on, without importing anything heavy."""

    def host(self) -> dict[str, Any]:
        """What else decides its engine: of this machine and of the process's settings, as JSON values."""

    def gpu(self, gpus: Collection[str] = ()) -> Gpu | None:
        """This machine's GPU where an engine is made for it alone; None where engines serve several, or need none."""

    def device(self, facts: Mapping[str, Any]) -> str:
        """Where an engine with these facts of its build runs: "cpu", or "cuda"."""

    def build(self, emitted: Emitted, request: BuildRequest, folder: Path, progress: Progress) -> Built:
        """Write `folder/engine_file`, of the file after its forms. Raises BuildError where the engine refuses that."""

    def load(
        self, engine: Path, facts: Mapping[str, Any], loading: Loading = AS_CALLED
    ) -> AbstractContextManager[Runner]:
        """Load an engine for running, by several threads at once. Raises MachineLacks or ArtifactError, never crashes.

        What runs on a GPU is an OnDevice. No call may be in progress when the context ends.
        """

    def require_of(self, engine: Path, facts: Mapping[str, Any], model: onnx.ModelProto) -> None:
        """Raise ArtifactError where an engine, read without running it, is not that of `model`, or not whole.

        An engine that tells nothing passes.
        """

    def profile(self, engine: Path, facts: Mapping[str, Any], inputs: Sequence[Arrays]) -> tuple[LayerTime, ...] | str:
        """The times of each layer, in the order of execution, for `inputs`; or one line: why there is none."""


def backends() -> dict[str, Backend]:
    """Every backend by name, in the order of `AUTO`, then by name. Importing them imports no inference library.

    Each public module of `mlpdeploy.engine.backends` defines BACKEND or BACKENDS, and other files are their helpers.
    """
    found: dict[str, Backend] = {}
    for info in pkgutil.iter_modules(_package.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{_package.__name__}.{info.name}")
        several = getattr(module, "BACKENDS", None)
        found |= {one.name: one for one in ((module.BACKEND,) if several is None else several)}
    rank = {name: place for place, name in enumerate(AUTO)}
    return dict(sorted(found.items(), key=lambda item: (rank.get(item[0], len(rank)), item[0])))


def pick(
    name: str = "auto",
    precision: str = "fp32",
    gpus: Collection[str] = (),
    request: BuildRequest | None = None,
) -> Backend:
    """The backend of that name, or for `auto` the first of `AUTO` that this machine can build `precision` with.

    `gpus` are the compute capabilities to build for, such as sm86. Raises InputError where no such backend exists, or
    it has no such precision or GPU, or cannot do something else that `request` asks for, and MachineLacks where this
    machine cannot build with it.
    """
    found = _pick(backends(), name, precision, gpus)
    reason = None if request is None else _unmet(found, request)
    if reason is not None:
        raise InputError(reason)
    return found


def _unmet(backend: Backend, request: BuildRequest) -> str | None:
    """Why a backend cannot do what only some can; None where it can."""
    batch = request.batch
    if request.plugin == "on" and (reason := backend.plugins()) is not None:
        return reason
    if request.level is not None and not backend.has_levels:
        return f"backend {backend.name} has no optimisation levels, which are TensorRT's: drop --level"
    if batch.profiles and not backend.has_profiles:
        return (
            f"backend {backend.name} has no optimisation profiles, which are TensorRT's: give one MIN:OPT:MAX, such as "
            f"--batch {batch.min}:{batch.opt}:{batch.max}"
        )
    if request.timing_cache is not None and not backend.times_kernels:
        return f"backend {backend.name} times no kernels while it builds: drop --timing-cache"
    if request.route and not backend.has_routes:
        return f"{unrouted(backend)}: drop --build-route"
    lacking = (backend.lacking(feature, request.precision) for feature in request.features)
    return next((reason for reason in lacking if reason is not None), None)


def unrouted(backend: Backend) -> str:
    """What is said of a backend without build routes."""
    return f"backend {backend.name} has no build routes, which are those of --backend tensorrt"


def _pick(table: Mapping[str, Backend], name: str, precision: str, gpus: Collection[str]) -> Backend:
    if name == "auto":
        return _pick_auto(table, precision, gpus)
    if name not in table:
        near = difflib.get_close_matches(name, table, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of: auto, {', '.join(table)}"
        raise InputError(f"no backend is called {name!r}; {hint}")
    backend = table[name]
    reason = backend.available()
    if reason is not None:
        raise MachineLacks(f"backend {name} cannot build on this machine: {reason}")
    refused = backend.supports(precision, gpus)
    if refused is not None:
        raise InputError(refused)
    return backend


def _pick_auto(table: Mapping[str, Backend], precision: str, gpus: Collection[str]) -> Backend:
    reasons, refused, lacks = [], list[str](), list[MachineLacks]()
    for name in (name for name in AUTO if name in table):
        reason, other = table[name].available() or table[name].supports(precision), None
        try:
            other = table[name].supports(precision, gpus) if reason is None else None
        except MachineLacks as error:
            lacks.append(error)
            continue
        if reason is None and other is None:
            return table[name]
        reasons.append(f"{name}: {reason or other}")
        refused += [other] if other else []
    if lacks or refused:
        raise lacks[0] if lacks else InputError(refused[0])
    raise MachineLacks(
        f"no backend of this machine can build {precision}; install one, for example: pip install tensorrt-rtx\n"
        + "\n".join(reasons)
    )
