"""Features of TensorRT's engines: what the builder is asked for, and what loading such an engine takes.

A stripped engine is made for any weights of its graph. It takes them from `model.onnx` beside it whenever it is loaded,
and a build of the same graph with other weights keeps it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy.engine import nvidia
from mlpdeploy.engine.backends.tensorrt import _polygraphy
from mlpdeploy.engine.backends.tensorrt._targets import version_numbers
from mlpdeploy.engine.features import HARDWARE, STREAMING, STRIPPED, VERSION
from mlpdeploy.errors import ArtifactError, MachineLacks
from mlpdeploy.precisions import CODED
from mlpdeploy.system.files import sha256

if TYPE_CHECKING:
    import onnx

    from mlpdeploy.engine.backend import BuildRequest

OLDEST = 80
"""The first compute capability, Ampere's, of what TensorRT calls hardware compatible."""


def lacking(flavour: str, feature: str, precision: str) -> str | None:
    """None where engines of a flavour can have a feature, else one line: why not.

    Raises MachineLacks where they can, and this machine cannot build them.
    """
    if feature == STRIPPED and precision in CODED:
        return f"a stripped engine takes its weights from the file, and in {precision.upper()} these are codes: drop it"
    if flavour == "tensorrt":
        return None
    reasons = {
        HARDWARE: "its engines run on all GPUs that --gpu names already",
        VERSION: "it has no lean runtime, which other versions would run",
    }
    gpu = nvidia.probe()
    if feature == STRIPPED and isinstance(gpu, str):
        raise MachineLacks(f"{flavour} compiles an engine for weights to come on a GPU alone, and here is none: {gpu}")
    return f"{flavour} builds no {feature} engine: {reasons[feature]}" if feature in reasons else None


def options(trt: Any, features: Collection[str]) -> dict[str, Any]:
    """What Polygraphy's `CreateConfig` is asked for."""
    asked: dict[str, dict[str, Any]] = {
        HARDWARE: {"hardware_compatibility_level": trt.HardwareCompatibilityLevel.AMPERE_PLUS},
        VERSION: {"version_compatible": True},
        STREAMING: {"weight_streaming": True},
        STRIPPED: {"strip_plan": True, "refittable": True},
    }
    return {name: value for feature in features for name, value in asked[feature].items()}


def runtime(trt: Any, features: Collection[str]) -> Any:
    """An IRuntime for an engine with these features; None where any will do.

    A version compatible engine holds the runtime that runs it, which is code.
    """
    if VERSION not in features:
        return None
    from polygraphy.backend.trt.util import get_trt_logger

    made = trt.Runtime(get_trt_logger())
    made.engine_host_code_allowed = True
    return made


def prepare(trt: Any, engine: Any, features: Collection[str], model: Path, errors: list[str]) -> None:
    """Make an engine ready for contexts: its weights, and how many of them stay on the GPU.

    Raises ArtifactError where the engine does not take the weights of the file.
    """
    if STRIPPED in features:
        from polygraphy.backend.trt.util import get_trt_logger

        logger = get_trt_logger()
        refitter = trt.Refitter(engine, logger)
        read = trt.OnnxParserRefitter(refitter, logger).refit_from_file(str(model))
        if not read or not refitter.refit_cuda_engine():
            gave = RuntimeError("it gave no reason")
            raise ArtifactError(_polygraphy.message(f"TensorRT cannot take the weights of {model}", errors, gave))
    if STREAMING in features:
        engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()


def fits(package: str, built: str, here: str, features: Collection[str]) -> bool:
    """Whether this version runs an engine of that one."""
    if VERSION not in features or not package.startswith("tensorrt"):
        return built == here
    then, now = (version_numbers(version) for version in (built, here))
    return then[:1] == now[:1] and then <= now


def structure(model: onnx.ModelProto, request: BuildRequest, versions: Mapping[str, str], gpu: str) -> str:
    """A hash of all that decides a stripped engine: the file but for its floating weights, and how it is built."""
    from onnx import TensorProto

    kept = type(model)()
    kept.CopyFrom(model)
    del kept.metadata_props[:]
    for tensor in kept.graph.initializer:
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16):
            tensor.ClearField("raw_data")
    how = [request.precision, request.batch.text, request.level, request.route, sorted(request.features)]
    asked = [*how, dict(versions), gpu]
    return hashlib.sha256(kept.SerializeToString(deterministic=True) + json.dumps(asked).encode()).hexdigest()


def kept(before: Path | None, engine_file: str, wanted: str) -> bytes | None:
    """The stripped engine of the artifact that a build replaces, where it is that of the same structure."""
    if before is None:
        return None
    try:
        facts = json.loads((before / "manifest.json").read_text(encoding="utf-8"))["facts"]
        engine = before / engine_file
        whole = facts.get("structure") == wanted and sha256(engine) == facts.get("engine_sha256")
        return engine.read_bytes() if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
