"""OpenVINO on the CPU: the engine that runs fast on a machine without a GPU.

What OpenVINO 2026.4 does with precisions, found by experiment on an x86-64 CPU with AVX512-BF16 and no FP16:
- left alone, it runs an FP32 file in BF16 where the CPU has BF16, and says nothing; asked for f16, it runs BF16 too;
- asked for f32, it runs an FP32 file in f32, an FP16 file in f32 (so an FP16 overflow does not show), and a BF16
  file in BF16 where the file says BF16 and in f32 where it says f32.
So the hint is f32, which follows the file's own types, but for FP16 on a CPU that has FP16 arithmetic. What was
executed is read back from the compiled model, goes into the facts, and an FP32 engine that is not f32 fails the build.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mlpdeploy.engine import host
from mlpdeploy.engine.backends._openvino import Request, places, shared
from mlpdeploy.engine.base import EngineBackend, missing, one_line
from mlpdeploy.engine.form import Form
from mlpdeploy.engine.runner import Arrays, Contexts
from mlpdeploy.engine.signature import Signature
from mlpdeploy.errors import ArtifactError, BuildError
from mlpdeploy.precisions import QUANTISED

if TYPE_CHECKING:
    import onnx

    from mlpdeploy.engine.backend import BuildRequest, LayerTime, Progress
    from mlpdeploy.engine.onnx.emit import Emitted

_STEPS = 3
_NAMED = 3  # nodes that one message names
# OpenVINO's names of the layers whose arithmetic decides the precision.
PRODUCTS = ("Convolution", "FullyConnected", "MatMul")
INDICES = frozenset({"i32", "i64", "u32", "u64", "boolean"})
"""Of ids and places, which no precision is meant for."""
INT8 = frozenset({"i8", "u8"})
MASKS = INDICES | INT8
"""Of what has no numbers: OpenVINO's boolean is u8. A product of such types would be one of INT8 codes."""
_COMPUTING = frozenset({*PRODUCTS, "MVN", "Eltwise", "Reduce", "Softmax"})


class OpenVino(EngineBackend):
    """OpenVINO's CPU plugin; the engine is a compiled blob for this OpenVINO and this kind of CPU."""

    name = "openvino"
    engine_file = "engine.blob"
    code = None
    beside_codes = "fp32"
    without: ClassVar[Mapping[str, str]] = {"nvfp4": "it scales blocks of weights alone"}
    multiplied = ("int8",)
    off = ("pick_parts", "gather_shifts")  # a split and slices are faster there than gathers
    packages = ("openvino",)
    forms = (
        Form("keep_mean_axes", QUANTISED, needed=True),
        Form("part_wraps", needed=True),
        Form("spread_norms", needed=True),
        Form("flatten_grids"),
        Form("project_columns", options={"run": 8}),
    )
    concurrent = True

    def available(self) -> str | None:
        """The library is all it needs."""
        return missing("openvino", "openvino")

    def executable(self) -> str | None:
        """It runs where it builds."""
        return self.available()

    def host(self) -> dict[str, Any]:
        """See Backend.host: a blob is compiled for the CPU, by a library that takes options from the environment."""
        return {"cpu": host.cpu(), "environment": host.environment("DNNL_", "ONEDNN_", "OPENVINO_", "OV_")}

    def _build(self, emitted: Emitted, request: BuildRequest, engine: Path, progress: Progress) -> dict[str, Any]:
        import openvino

        core = _core()
        try:
            flat = _flat(emitted.model).SerializeToString()
            progress.step("inlining functions", 1, _STEPS)
            model = core.read_model(flat)
            progress.step("reading the ONNX file", 2, _STEPS)
            compiled = core.compile_model(model, "CPU", _config(openvino, core, request.precision, request.threads))
            progress.step("compiling", 3, _STEPS)
        except RuntimeError as error:
            where = _places(error, emitted.model)
            raise BuildError(f"OpenVINO refuses the ONNX file: {_reason(error)}{where}") from error
        executed = _executed(compiled)
        numbers = {kind: set(found) - ({*INDICES} if kind in PRODUCTS else MASKS) for kind, found in executed.items()}
        if request.precision == "fp32" and set().union(*numbers.values()) - {"f32"}:
            raise BuildError(f"OpenVINO would not compute in f32 throughout: {executed}; use another backend")
        products = [kind for kind in PRODUCTS if kind in executed]
        if request.precision == "int8" and not any(INT8 & set(executed[kind]) for kind in products):
            raise BuildError(f"OpenVINO would compute no product in INT8: {executed}; use another backend")
        engine.write_bytes(compiled.export_model().getvalue())
        return {
            "threads": request.threads,
            "cpu": core.get_property("CPU", "FULL_DEVICE_NAME"),
            "executed": "+".join(sorted(set().union(*executed.values()))),
            "executed_by_type": executed,
        }

    @contextmanager
    def _load(self, engine: Path, signature: Signature, facts: Mapping[str, Any]) -> Iterator[Contexts]:
        import openvino

        compiled = imported(openvino, engine, facts)
        yield Contexts(lambda: Request(openvino, compiled, signature))

    def profile(self, engine: Path, facts: Mapping[str, Any], inputs: Sequence[Arrays]) -> tuple[LayerTime, ...] | str:
        """See Backend.profile. Parts of an operation that OpenVINO takes apart come before the one with its name."""
        import openvino

        from mlpdeploy.engine.backend import LayerTime

        compiled = imported(openvino, engine, facts, PERF_COUNT=True)
        origins = {}
        for node in compiled.get_runtime_model().get_ops():
            info = node.get_rt_info()
            if "originalLayersNames" in info:
                origins[node.get_friendly_name()] = info["originalLayersNames"].astype(str).split(",")
        request, rows = compiled.create_infer_request(), {}
        read = places(compiled.inputs).keys()
        seconds: dict[str, list[float]] = {}
        for arrays in inputs:
            request.infer({name: shared(openvino, arrays[name]) for name in read & arrays.keys()})
            for row in request.profiling_info:
                if row.status == openvino.ProfilingInfo.Status.EXECUTED:
                    rows[row.node_name] = row.node_type
                    seconds.setdefault(row.node_name, []).append(row.real_time.total_seconds())
        found: list[LayerTime] = []
        for name, kind in reversed(rows.items()):
            own = tuple(origins.get(name, ()))
            if found and not any("/" in one for one in (name, *own)):
                own += (found[0].name, *found[0].origins)
            found.insert(0, LayerTime(kind, name, tuple(seconds[name]), own))
        return tuple(found)


BACKEND = OpenVino()


@cache
def _core() -> Any:
    """OpenVINO's core, one for the life of the process.

    Each core gives the thread that first compiles with it a stack for signal handlers, and takes it away when it ends.
    Of two that live at once, the second to end gives the thread back the stack that the first one freed, and the next
    signal (Ctrl-C too) ends the process by a segmentation fault.
    """
    import openvino

    return openvino.Core()


def _config(openvino: Any, core: Any, precision: str, threads: int | None) -> dict[str, Any]:
    halves = precision == "fp16" and "FP16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    # Where weights are blocks of INT4, it would make codes of their activations, too.
    config = {"INFERENCE_PRECISION_HINT": openvino.Type.f16 if halves else openvino.Type.f32}
    config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
    return config if threads is None else {**config, "INFERENCE_NUM_THREADS": threads}


def imported(openvino: Any, engine: Path, facts: Mapping[str, Any], **more: Any) -> Any:
    """The engine's file, compiled for a CPU of this kind."""
    core = _core()
    here = core.get_property("CPU", "FULL_DEVICE_NAME")
    if facts.get("cpu") != here:
        raise ArtifactError(
            f"{engine} was compiled for the CPU {facts.get('cpu')} and this one is {here}; build it again here"
        )
    config = _config(openvino, core, str(facts.get("precision")), facts.get("threads"))
    try:
        return core.import_model(engine.read_bytes(), "CPU", config | more)
    except RuntimeError as error:
        raise ArtifactError(f"OpenVINO cannot load {engine}: {_reason(error)}") from error


def _executed(compiled: Any) -> dict[str, list[str]]:
    """The precisions that layers which compute run in, by layer type."""
    found: dict[str, set[str]] = {}
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        kind = info["layerType"].astype(str) if "layerType" in info else ""
        if kind in _COMPUTING and "runtimePrecision" in info:
            found.setdefault(kind, set()).add(info["runtimePrecision"].astype(str))
    return {kind: sorted(names) for kind, names in sorted(found.items())}


def _flat(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as OpenVINO reads it rightly: functions inlined, and low-precision constants as raw bytes.

    Its ONNX reader takes the bits of a BF16 constant in `int32_data` for the number itself (0.5 becomes 16128).
    """
    import onnx
    from onnx import inliner, numpy_helper

    if model.functions:
        flat = inliner.inline_local_functions(model)
    else:
        flat = onnx.ModelProto()
        flat.CopyFrom(model)
    attributes = (attribute for node in flat.graph.node for attribute in node.attribute)
    constants = [attribute.t for attribute in attributes if attribute.type == onnx.AttributeProto.TENSOR]
    for tensor in (*flat.graph.initializer, *constants):
        if tensor.data_type == onnx.TensorProto.BFLOAT16 and tensor.int32_data:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    return flat


# What OpenVINO writes around the reason: where it was thrown, and which part of it gave up.
_AROUND = ("Exception from", "Check ", "FrontEnd API failed", "Model wasn't fully converted", "Summary")

# What ends a line about an operation that is followed by why, or that only lies behind one that could not be read.
_BEHIND = ("with a message:", "has to be known (static)", "Unsupported input type dynamic")


def _places(error: BaseException, model: onnx.ModelProto) -> str:
    """`, in block.fft/STFT`: the nodes of the file that can be those that an error tells only the type of."""
    kinds = set(re.findall(r"ONNX node '<Node\((\w+)\)", str(error)))
    names = [node.name for node in model.graph.node if node.op_type in kinds]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f", in {', '.join(names[:_NAMED])}{more}" if names else ""


def _reason(error: BaseException) -> str:
    told = [line for line in str(error).splitlines() if line.strip() and not line.startswith(_AROUND)]
    placed = [line for line in told if not line.startswith("While validating ONNX node")] or told
    return one_line("\n".join(line for line in placed if not line.endswith(_BEHIND)) or "\n".join(told) or error)
