"""TensorRT in both flavours: `tensorrt` for data centre GPUs, `tensorrt-rtx`, which builds without any GPU.

Both share one API, and Polygraphy's loaders, profiles and runners serve both (see `_polygraphy`). The network is
strongly typed: its dtypes are the ONNX file's, and they are read back after parsing and before building. With plain
TensorRT our plugins may take the place of the file's local functions, which hold the same arithmetic (see `_plugin`).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy import kernels
from mlpdeploy.engine import nvidia
from mlpdeploy.engine.backends.tensorrt import (
    _configuration,
    _contexts,
    _features,
    _layer_information,
    _polygraphy,
    _programme,
    _routes,
)
from mlpdeploy.engine.backends.tensorrt._follows_plan import DTYPES, check, executed
from mlpdeploy.engine.backends.tensorrt._launches import launches
from mlpdeploy.engine.backends.tensorrt._targets import compute_capabilities, lacking, version_numbers
from mlpdeploy.engine.backends.tensorrt._targets import unserved as unserved
from mlpdeploy.engine.backends.tensorrt.parsed import ParsedNetwork, read
from mlpdeploy.engine.base import EngineBackend, installed_version, missing
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.features import HARDWARE, STRIPPED
from mlpdeploy.engine.form import Form, prepare
from mlpdeploy.engine.nvidia import CURRENT
from mlpdeploy.engine.on_gpu import OnGpu
from mlpdeploy.engine.runner import Arrays, Contexts
from mlpdeploy.engine.signature import Signature
from mlpdeploy.errors import ArtifactError, BuildError, InputError, MachineLacks
from mlpdeploy.precisions import EIGHT_BIT, QUANTISED

if TYPE_CHECKING:
    import onnx

    from mlpdeploy.engine.backend import BuildRequest, LayerTime, Progress
    from mlpdeploy.engine.onnx.emit import Emitted

OLDEST = {"tensorrt": (10, 13), "tensorrt-rtx": (1, 0)}
DOMAIN = "mlpdeploy"


class TensorRT(EngineBackend):
    """One flavour of TensorRT."""

    engine_file = "engine.plan"
    code = "compiled kernels"
    beside_codes = "fp16"
    multiplied = QUANTISED
    forms = tuple(
        Form(name)
        for name in ("crop_deconvolutions", "stage_norms", "transpose_last", "fill_ranks", "flatten_rows", "turn_maps")
    )
    has_levels = has_profiles = concurrent = True
    # Of a split activation the products are joined again, and gelu then costs a launch of its own; convolutions of
    # shifts are more launches than the slices in their place (benchmarks/results/launches.json).
    off = ("split_activation", "convolve_shifts")

    def __init__(self, flavour: str) -> None:
        self.name = flavour
        self.module = flavour.replace("-", "_")
        self.packages = (flavour,)
        self.times_kernels = flavour == "tensorrt"  # TensorRT-RTX compiles kernels where they run
        self.has_routes = flavour == "tensorrt"
        self.fuses_codes = flavour == "tensorrt"  # TensorRT-RTX's by its engines (benchmarks/results/quantisation.json)
        if not self.fuses_codes:
            self.forms = (Form("multiply_pointwise", EIGHT_BIT), *self.forms)

    def versions(self) -> dict[str, str]:
        """The installed version; NVIDIA's wheels are called tensorrt, tensorrt-cu12 or tensorrt-cu13."""
        names = (self.module, f"{self.module}-cu13", f"{self.module}-cu12")
        return {self.module: next((found for name in names if (found := installed_version(name))), "none")}

    def available(self) -> str | None:
        """The library, in a version that is served; `tensorrt` also needs a GPU, which it times kernels on."""
        absent = missing(self.module, self.name) or missing("polygraphy", "polygraphy")
        if absent is not None:
            return absent
        version = self.versions()[self.module]
        if version != "none" and version_numbers(version)[:2] < OLDEST[self.name]:
            oldest = ".".join(map(str, OLDEST[self.name]))
            return f"{self.module} {version} is too old; install {oldest} or later: pip install -U {self.name}"
        return self.executable() if self.name == "tensorrt" else None

    def executable(self) -> str | None:
        """The library, and an NVIDIA GPU that it serves."""
        if (absent := missing(self.module, self.name)) is not None:
            return absent
        gpu = nvidia.probe()
        return gpu if isinstance(gpu, str) else unserved(self.name, gpu)

    def supports(self, precision: str, gpus: Collection[str] = ()) -> str | None:
        """Every precision: TF32 is a builder flag on FP32."""
        if precision not in DTYPES:
            return super().supports(precision)
        if (without := lacking(self.name, gpus, precision)) is not None:
            return without
        try:
            compute_capabilities(self.name, gpus, "")
        except InputError as refused:
            return str(refused)
        return None

    def device(self, facts: Mapping[str, Any]) -> str:
        """See Backend.device: a GPU."""
        return "cuda"

    def gpu(self, gpus: Collection[str] = ()) -> nvidia.Gpu | None:
        """See Backend.gpu: plain TensorRT times kernels on the GPU that it builds for."""
        return super().gpu((CURRENT,) if self.name == "tensorrt" else gpus)

    def plugins(self) -> str | None:
        """Only plain TensorRT has them."""
        if self.name == "tensorrt":
            return None
        return "tensorrt-rtx has no plugins, its engines use the functions of the ONNX file; leave --plugin on out"

    def lacking(self, feature: str, precision: str) -> str | None:
        """See Backend.lacking."""
        return _features.lacking(self.name, feature, precision)

    def routes(self) -> tuple[str, ...]:
        """See Backend.routes."""
        if (reason := self.executable()) is not None:
            raise MachineLacks(reason)
        return _routes.offered(_polygraphy.bind(self.name))

    def _fits(self, package: str, built: str, here: str, facts: Mapping[str, Any]) -> bool:
        return _features.fits(package, built, here, facts.get("features", ()))

    def _serves(self, capability: str, gpus: Collection[str], facts: Mapping[str, Any]) -> bool:
        newer = HARDWARE in facts.get("features", ()) and int(capability.removeprefix("sm")) >= _features.OLDEST
        return newer or super()._serves(capability, gpus, facts)

    def _build(self, emitted: Emitted, request: BuildRequest, engine: Path, progress: Progress) -> dict[str, Any]:
        from mlpdeploy.engine.backends.tensorrt import _plugin

        trt = _polygraphy.bind(self.name)
        monitor = _polygraphy.monitor(trt, progress.step)
        structure = self._structure(emitted.model, request) if STRIPPED in request.features else None
        make = functools.partial(self._plan, trt, emitted, request, monitor, structure)
        (plan, parsed), plugin = _plugin.build(trt, emitted, request, make)
        engine.write_bytes(plan)
        programmes = _programme.read(plan)
        ports = [spec.name for spec in (*emitted.typed.inputs, *emitted.typed.outputs)]
        _layer_information.write(self.name, engine, programmes, ports, request.features)
        return {
            "executed": executed(parsed, request.precision),
            "parsed": parsed.facts(),
            "launches": self._launched(programmes, request.batch),
            "plugin": plugin,
            **request.batch.several(),
            **({"features": sorted(request.features)} if request.features else {}),
            **({} if structure is None else {"structure": structure}),
            **({"build_route": request.route} if request.route else {}),
        }

    def _launched(self, programmes: Mapping[int, _programme.Programme], batch: Batch) -> dict[str, Any] | None:
        """What an inference launches at the usual size, and how much by profile where there are several."""
        if batch.usual not in programmes:
            return None
        found = asdict(launches(programmes[batch.usual]))
        each = [(Batch(*one).text, programmes.get(place)) for place, one in enumerate(batch.profiles)]
        by_profile = {text: len(programme.statements) for text, programme in each if programme is not None}
        return {**found, "by_profile": by_profile} if by_profile else found

    def _structure(self, model: onnx.ModelProto, request: BuildRequest) -> str:
        gpu = nvidia.probe()
        return _features.structure(model, request, self.versions(), gpu if isinstance(gpu, str) else gpu.name)

    def _plan(
        self,
        trt: Any,
        emitted: Emitted,
        request: BuildRequest,
        monitor: Any,
        structure: str | None,
        model: onnx.ModelProto,
    ) -> tuple[bytes, ParsedNetwork]:
        """The engine of `model`, whose dtypes have been read back, and what was parsed.

        A stripped engine, which is that of a `structure`, is taken from the artifact before where that has it.
        """
        with _network(trt, model) as (network, errors):
            parsed = _read_back(network[1], model)
            check(parsed, request.precision, emitted.fp32_nodes, emitted.quantised_nodes)
            if structure is not None:
                before = _features.kept(request.before, self.engine_file, structure)
                if before is not None:
                    return before, parsed
            with self._timing_cache(request.timing_cache) as cache:
                gpus = compute_capabilities(self.name, request.gpus, request.precision)
                config = _configuration.config(trt, self.name, request, network[1], gpus, monitor, cache)
                return _configuration.serialised(network, config, cache, monitor, errors), parsed

    def _timing_cache(self, named: Path | None) -> contextlib.AbstractContextManager[str | None]:
        if not self.times_kernels:
            return contextlib.nullcontext()
        if named is not None:
            return _polygraphy.named_cache(named)
        return _polygraphy.timing_cache(f"{self.name}-{self.versions()[self.module]}-kernel-{kernels.version()}")

    @contextmanager
    def _load(self, engine: Path, signature: Signature, facts: Mapping[str, Any]) -> Iterator[Contexts]:
        with _contexts.deserialised(self.name, engine, facts) as loaded, contextlib.ExitStack() as stack:
            bind = functools.partial(_contexts.bind, loaded, signature.outputs)
            if _contexts.pytorch_has_gpu():
                yield OnGpu(lambda: _contexts.computing(loaded), bind)
            else:
                yield Contexts(lambda: stack.enter_context(_contexts.by_polygraphy(loaded)), bind)

    def require_of(self, engine: Path, facts: Mapping[str, Any], model: onnx.ModelProto) -> None:
        """See Backend.require_of: of TensorRT-RTX, what it launched when it was built, and the nodes that it names."""
        told = facts.get("launches")
        if told is None:
            return
        usual, ours = Batch.from_facts(facts).usual, {node.name for node in model.graph.node}
        programme = _programme.read(engine.read_bytes()).get(usual)
        named = () if programme is None else (node for one in programme.statements for node in one.nodes)
        told = {name: value for name, value in told.items() if name != "by_profile"}
        if programme is None or not told.items() <= asdict(launches(programme)).items() or ours.isdisjoint(named):
            raise ArtifactError(f"{engine} is not the engine that was built of model.onnx: build it again with --force")

    def profile(self, engine: Path, facts: Mapping[str, Any], inputs: Sequence[Arrays]) -> tuple[LayerTime, ...] | str:
        """See Backend.profile: TensorRT's IProfiler, which needs the engine to run."""
        reason = self.executable()
        if reason is not None:
            return f"{self.name} tells the time of its layers where its engines run: {reason}"
        self._check_gpu(engine, facts)
        with _contexts.deserialised(self.name, engine, facts) as loaded:
            return _contexts.layer_times(loaded, Signature.from_facts(facts).outputs, inputs)


BACKENDS = (TensorRT("tensorrt"), TensorRT("tensorrt-rtx"))


def parse(model: onnx.ModelProto, flavour: str = "tensorrt-rtx") -> ParsedNetwork:
    """What TensorRT's parser makes of `model`: no GPU is needed, and nothing is built.

    Raises BuildError, with TensorRT's own words, where the parser refuses the model.
    """
    trt = _polygraphy.bind(flavour)
    with _network(trt, model) as (network, _):
        return _read_back(network[1], model)


def parse_prepared(
    model: onnx.ModelProto, flavour: str = "tensorrt-rtx", disabled: Collection[str] = ()
) -> ParsedNetwork:
    """What TensorRT parses when it builds `model`: as `parse`, behind its forms but those `disabled`."""
    return parse(prepare(model, TensorRT(flavour).forms, "fp16", disabled).model, flavour)


def strongly_typed_flag(trt: Any) -> bool:
    """Whether a network must be asked to be strongly typed; where the flag is gone (TensorRT 11), it always is."""
    if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        return True
    if trt.__name__ == "tensorrt" and version_numbers(trt.__version__)[0] < 11:
        raise BuildError(f"TensorRT {trt.__version__} has no strongly typed networks; install 10.13 or later")
    return False


def _read_back(network: Any, model: onnx.ModelProto) -> ParsedNetwork:
    from polygraphy.backend.trt.util import get_layer_class_mapping

    classes = get_layer_class_mapping()

    def downcast(layer: Any) -> Any:
        layer.__class__ = classes.get(layer.type, layer.__class__)
        return layer

    return read(network, downcast, {function.name for function in model.functions if function.domain == DOMAIN})


@contextmanager
def _network(trt: Any, model: onnx.ModelProto) -> Iterator[tuple[tuple[Any, Any, Any], list[str]]]:
    """(builder, network, parser) of a model, and the list that TensorRT's errors go to."""
    from mlpdeploy.engine.backends.tensorrt import _parser, _plugin

    typed, ahead = strongly_typed_flag(trt), _plugin.is_called(model)
    with _polygraphy.collected_errors(trt) as errors:
        yield _parser.network(trt, model.SerializeToString(), errors, typed=typed, ahead=ahead), errors
