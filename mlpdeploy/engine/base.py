"""What every backend checks the same way: a public method checks, and a small private one of the engine does."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mlpdeploy.engine import forks, form, nvidia
from mlpdeploy.engine.runner import AS_CALLED, Contexts, Loading, Runner
from mlpdeploy.engine.signature import Signature
from mlpdeploy.errors import ArtifactError, InputError, MachineLacks, TunedElsewhere
from mlpdeploy.precisions import CODED, PRECISIONS
from mlpdeploy.system.files import sha256

if TYPE_CHECKING:
    import onnx

    from mlpdeploy.engine.backend import BuildRequest, Built, LayerTime, Progress
    from mlpdeploy.engine.form import Form
    from mlpdeploy.engine.onnx.emit import Emitted
    from mlpdeploy.engine.runner import Arrays
    from mlpdeploy.graph.tracing.trace import TensorSpec


class EngineBackend(ABC):
    """The part of a backend that all engines share; a subclass adds `_build` and `_load`."""

    name: str
    engine_file: str
    packages: tuple[str, ...]  # distributions that an engine's file depends on
    code: str | None = "code of its own"  # until a subclass knows that it holds none
    beside_codes: str | None = None
    without: ClassVar[Mapping[str, str]] = {}  # precisions that it lacks, with the reason
    multiplied: tuple[str, ...] = ()
    forms: tuple[Form, ...] = ()
    off: tuple[str, ...] = ()
    reads_file = True
    has_profiles = False
    times_kernels = False
    has_levels = False
    has_routes = False
    fuses_codes = True
    concurrent = False  # whether its contexts compute at once; if not, there is one, and calls take turns

    @abstractmethod
    def available(self) -> str | None:
        """See Backend.available."""

    @abstractmethod
    def executable(self) -> str | None:
        """See Backend.executable."""

    @abstractmethod
    def _build(self, emitted: Emitted, request: BuildRequest, engine: Path, progress: Progress) -> dict[str, Any]:
        """Write `engine` of the file after its forms, and return the facts that are this backend's own."""

    @abstractmethod
    def _load(self, engine: Path, signature: Signature, facts: Mapping[str, Any]) -> AbstractContextManager[Contexts]:
        """Load a file whose hash and versions have been checked; what its contexts compute from and into is, too."""

    def supports(self, precision: str, gpus: Collection[str] = ()) -> str | None:
        """See Backend.supports: the CPU engines have no TF32, which is a mode of NVIDIA's tensor cores."""
        if gpus:
            return f"backend {self.name} builds for this machine's CPU, not for {', '.join(gpus)}: drop --gpu"
        if precision not in PRECISIONS:
            return f"backend {self.name} has no precision {precision!r}; choose one of: {', '.join(PRECISIONS)}"
        if precision == "tf32":
            return f"backend {self.name} has no TF32, which is a mode of NVIDIA GPUs; ask for fp32"
        if precision in self.without:
            return f"backend {self.name} has no {precision.upper()}: {self.without[precision]}; ask for another backend"
        if precision in CODED and self.beside_codes is None:
            return f"backend {self.name} has no {precision.upper()}; ask for fp32, or for another backend"
        return None

    def without_gpu(self) -> str | None:
        """See Backend.without_gpu: it has no choice."""
        return None

    def beside(self, precision: str) -> str | None:
        """See Backend.beside."""
        return self.beside_codes if precision in CODED else None

    def require_of(self, engine: Path, facts: Mapping[str, Any], model: onnx.ModelProto) -> None:
        """See Backend.require_of: nothing is known of how an engine names what it computes."""
        return None

    def off_for(self, gpus: Collection[str] = ()) -> tuple[str, ...]:
        """See Backend.off_for: nothing else."""
        return self.off

    def carries_kernel(self, gpus: Collection[str] = ()) -> bool:
        """See Backend.carries_kernel."""
        return False

    def plugins(self) -> str | None:
        """See Backend.plugins."""
        return f"backend {self.name} has no plugins: --plugin on needs --backend tensorrt"

    def lacking(self, feature: str, precision: str) -> str | None:
        """See Backend.lacking."""
        return f"backend {self.name} builds no {feature} engine, which are TensorRT's: drop --features"

    def routes(self) -> tuple[str, ...]:
        """See Backend.routes."""
        return ()

    def versions(self) -> dict[str, str]:
        """The versions of the installed packages that an engine depends on; "none" where one is missing."""
        return {package: installed_version(package) or "none" for package in self.packages}

    def host(self) -> dict[str, Any]:
        """See Backend.host: nothing of this machine."""
        return {}

    def gpu(self, gpus: Collection[str] = ()) -> nvidia.Gpu | None:
        """See Backend.gpu: where it is asked for."""
        here = nvidia.probe() if nvidia.CURRENT in gpus else None
        return here if isinstance(here, nvidia.Gpu) else None

    def device(self, facts: Mapping[str, Any]) -> str:
        """See Backend.device: the CPU."""
        return "cpu"

    def build(self, emitted: Emitted, request: BuildRequest, folder: Path, progress: Progress) -> Built:
        """Check the request, build, and record what the file's reader must know."""
        from mlpdeploy.engine.backend import Built

        self._check_request(request)
        forks.use()
        engine, started = folder / self.engine_file, time.perf_counter()
        prepared = form.prepare(emitted.model, self.forms, request.precision, request.disabled)
        own = self._build(replace(emitted, model=prepared.model), request, engine, progress)
        batch, gpu = request.batch, self.gpu(request.gpus)
        facts = {
            "backend": self.name,
            "precision": request.precision,
            "inputs": [_port(spec) for spec in emitted.typed.inputs],
            "outputs": [_port(spec) for spec in emitted.typed.outputs],
            "batch": [batch.min, batch.opt, batch.max],
            "versions": self.versions(),
            "gpu": None if gpu is None else gpu.name,
            "gpus": list(request.gpus) if gpu is None else [gpu.capability],
            "engine_bytes": engine.stat().st_size,
            "engine_sha256": sha256(engine),
            "build_seconds": round(time.perf_counter() - started, 3),
            **own,
        }
        return Built(engine, prepared, facts)

    def load(
        self, engine: Path, facts: Mapping[str, Any], loading: Loading = AS_CALLED
    ) -> AbstractContextManager[Runner]:
        """Check the file against `facts` and this machine, then load it for running."""
        return self._checked(engine, facts, loading)

    def profile(self, engine: Path, facts: Mapping[str, Any], inputs: Sequence[Arrays]) -> tuple[LayerTime, ...] | str:
        """See Backend.profile: not every engine has a profiler."""
        return f"{self.name} does not tell the time of its layers"

    @contextmanager
    def _checked(self, engine: Path, facts: Mapping[str, Any], loading: Loading) -> Iterator[Runner]:
        signature = Signature.from_facts(facts)
        self._check_file(engine, facts)
        self._check_versions(engine, facts)
        reason = self.executable()
        if reason is not None:
            raise MachineLacks(f"the {self.name} engine {engine} cannot run on this machine: {reason}")
        self._check_gpu(engine, facts)
        forks.use()
        with self._load(engine, signature, facts) as contexts:
            with contexts.runner(signature, loading, self.concurrent) as runner:
                yield runner

    def _check_request(self, request: BuildRequest) -> None:
        reason = self.available()
        if reason is not None:
            raise MachineLacks(f"backend {self.name} cannot build on this machine: {reason}")
        refused = self.supports(request.precision, request.gpus)
        if refused is not None:
            raise InputError(refused)
        batch = request.batch
        if not 1 <= batch.min <= batch.opt <= batch.max:
            raise InputError(f"batch {batch.min}:{batch.opt}:{batch.max} must rise from 1 or more: MIN <= OPT <= MAX")

    def _check_file(self, engine: Path, facts: Mapping[str, Any]) -> None:
        if facts.get("backend") != self.name:
            raise ArtifactError(f"{engine} is an engine of {facts.get('backend')}, not of {self.name}")
        if not engine.is_file():
            raise ArtifactError(f"there is no engine at {engine}; build the artifact again")
        if sha256(engine) != facts.get("engine_sha256"):
            raise ArtifactError(f"{engine} was altered or cut short since it was built; build it again with --force")

    def _check_gpu(self, engine: Path, facts: Mapping[str, Any]) -> None:
        """Raise ArtifactError where an engine is for other GPUs than this machine's; warn where it is for a sister."""
        gpus, tuned = [str(name) for name in facts.get("gpus", ())], facts.get("gpu")
        if not gpus or isinstance(here := nvidia.probe(), str):
            return
        if not self._serves(here.capability, gpus, facts):
            elsewhere = self.supports(str(facts.get("precision")), (here.capability,)) is None
            raise ArtifactError(
                f"{engine} was built for {', '.join(gpus)} and this machine's {here.name} is {here.capability}; "
                "build it again here" + (f" or with --gpu {here.capability}" if elsewhere else "")
            )
        if tuned is not None and tuned != here.name:
            line = f"{engine} was tuned on {tuned}, and this machine has {here.name}: build it again here to be fast"
            warnings.warn(line, TunedElsewhere, stacklevel=2)

    def _serves(self, capability: str, gpus: Collection[str], facts: Mapping[str, Any]) -> bool:
        """Whether an engine for these GPUs runs on one of that compute capability."""
        return capability in gpus

    def _fits(self, package: str, built: str, here: str, facts: Mapping[str, Any]) -> bool:
        """Whether this version of a package runs an engine of that one."""
        return built == here

    def _check_versions(self, engine: Path, facts: Mapping[str, Any]) -> None:
        built = facts.get("versions")
        built = built if isinstance(built, Mapping) else {}
        for package, here in self.versions().items():
            if here == "none":
                raise MachineLacks(f"{engine} needs {package} {built.get(package)}, which is not installed here")
            if not self._fits(package, str(built.get(package)), here, facts):
                raise ArtifactError(
                    f"{engine} was built with {package} {built.get(package, 'of no recorded version')} and this "
                    f"machine has {package} {here}; build it again, or install that version"
                )


def installed_version(package: str) -> str | None:
    """The version of an installed distribution, without importing it; None where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing(module: str, install: str) -> str | None:
    """One line where `module` cannot be imported here, without importing it."""
    if importlib.util.find_spec(module) is None:
        return f"the Python package {module} is not installed; pip install {install}"
    return None


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """The first line of an error that says something, at most `limit` characters."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    return first if len(first) <= limit else first[: limit - 1] + "…"


def _port(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": str(spec.dtype).removeprefix("torch.")}
