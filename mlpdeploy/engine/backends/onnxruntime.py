"""ONNX Runtime on the CPU: the independent judge of the emitted ONNX file.

What ONNX Runtime 1.31 does with low precision on an x86-64 CPU, found by experiment:
- FP16: it has FP16 kernels for few operations; around the others it inserts casts, and drops each pair of casts
  between two of them. Values then flow in float32: 300 * 300 = 90000 passes unharmed through an FP16 graph, whose
  true value is infinity. So the file as it stands would hide an overflow, at every optimisation level.
- BF16: the file is refused (`Type 'tensor(bfloat16)' of input parameter of operator (Conv) is invalid`).
- The pair Cast(to low), Cast(to float), written out in the file, is kept at every optimisation level.
So for FP16 and BF16 the file has the form `round_results`: float32 arithmetic, as tensor cores accumulate, and every
operation's result rounded to the low precision.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy.engine.base import EngineBackend, missing, one_line
from mlpdeploy.engine.form import Form
from mlpdeploy.engine.runner import Arrays, Contexts
from mlpdeploy.engine.signature import Signature
from mlpdeploy.errors import ArtifactError, BuildError
from mlpdeploy.precisions import QUANTISED
from mlpdeploy.system.leftovers import temporary_folder

if TYPE_CHECKING:
    import numpy as np

    from mlpdeploy.engine.backend import BuildRequest, LayerTime, Progress
    from mlpdeploy.engine.onnx.emit import Emitted

_STEPS = 2
_FLOAT = "tensor(float)"
LOW, ROUNDED = ("fp16", "bf16"), "round_results"


class OnnxRuntime(EngineBackend):
    """ONNX Runtime's CPU execution provider; the engine is an ONNX file, portable to any machine."""

    name = "onnxruntime"
    engine_file = "engine.onnx"
    code = None
    beside_codes = "fp32"
    multiplied = ("int8",)
    off = ("pick_parts", "gather_shifts")  # a split and slices are faster there than gathers
    packages = ("onnxruntime",)
    forms = (
        Form("widen_fp4", ("nvfp4",), needed=True),
        Form("project_columns"),
        Form("multiply_means", ("fp32", *QUANTISED)),
        Form(ROUNDED, LOW, needed=True),
        Form("widen_ports", needed=True),
    )
    concurrent = True

    def available(self) -> str | None:
        """The library is all it needs."""
        return missing("onnxruntime", "onnxruntime")

    def executable(self) -> str | None:
        """It runs where it builds."""
        return self.available()

    def _build(self, emitted: Emitted, request: BuildRequest, engine: Path, progress: Progress) -> dict[str, Any]:
        model = emitted.model.SerializeToString()
        progress.step("writing the model", 1, _STEPS)
        try:
            session = open_session(model, request.threads)
        except _refusals() as error:
            raise BuildError(f"ONNX Runtime refuses the ONNX file: {one_line(error)}\n{error}") from error
        progress.step("checking the session", 2, _STEPS)
        # A model that ONNX Runtime optimised holds nodes of this CPU's own layout, so the portable file is kept.
        engine.write_bytes(model)
        rounded = request.precision in LOW and ROUNDED not in request.disabled
        return {
            "threads": request.threads,
            "executed": "fp32 arithmetic" + (f", every result rounded to {request.precision}" if rounded else ""),
            "providers": session.get_providers(),
        }

    @contextmanager
    def _load(self, engine: Path, signature: Signature, facts: Mapping[str, Any]) -> Iterator[Contexts]:
        try:
            session = open_session(engine.read_bytes(), facts.get("threads"))
        except _refusals() as error:
            raise ArtifactError(f"ONNX Runtime cannot load {engine}: {one_line(error)}") from error
        yield Contexts(lambda: _Binding(session, signature))

    def profile(self, engine: Path, facts: Mapping[str, Any], inputs: Sequence[Arrays]) -> tuple[LayerTime, ...] | str:
        """See Backend.profile: ONNX Runtime writes an event for each node and run into a file."""
        from mlpdeploy.engine.backend import LayerTime

        with temporary_folder() as folder:
            session = open_session(engine.read_bytes(), facts.get("threads"), profile=f"{folder}/profile")
            wide = {port.name for port in session.get_inputs() if port.type == _FLOAT}
            for arrays in inputs:
                session.run(None, {name: _fed(array, name in wide) for name, array in arrays.items()})
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        kernels: dict[tuple[str, str], list[float]] = {}
        for event in events:
            name, found = str(event.get("name")).rpartition("_kernel_time")[::2]
            if event.get("cat") == "Node" and not found:
                kernels.setdefault((str(event["args"]["op_name"]), name), []).append(event["dur"] * 1e-6)
        return tuple(LayerTime(kind, name, tuple(times)) for (kind, name), times in kernels.items())


BACKEND = OnnxRuntime()


class _Binding:
    """A context: a session, with a binding to the caller's arrays where outputs are too large to be copied.

    Of ports that hold BF16 the session has float32 (see `widen_ports`), so these are converted.
    """

    def __init__(self, session: Any, signature: Signature) -> None:
        self._session, self._names = session, [port.name for port in signature.outputs]
        self._wide = {port.name for port in (*session.get_inputs(), *session.get_outputs()) if port.type == _FLOAT}
        bound = all(port.dtype == "float32" or port.name not in self._wide for port in signature.outputs)
        small = all(map(signature.is_small, signature.outputs))
        self._binding = session.io_binding() if bound and not small else None

    def __call__(self, inputs: Arrays, outputs: Arrays) -> None:
        fed = {name: _fed(array, name in self._wide) for name, array in inputs.items()}
        if self._binding is None:
            for name, result in zip(self._names, self._session.run(self._names, fed), strict=True):
                outputs[name][...] = result
            return
        for name, array in fed.items():
            self._binding.bind_cpu_input(name, array)
        for name, array in outputs.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        try:
            self._session.run_with_iobinding(self._binding)
        finally:
            self._binding.clear_binding_inputs()
            self._binding.clear_binding_outputs()


def _fed(array: np.ndarray, wide: bool) -> np.ndarray:
    """An input as a session takes it."""
    array = array.astype("float32") if wide and array.dtype != "float32" else array
    return array if array.flags.c_contiguous else array.copy()


def open_session(model: bytes, threads: int | None, profile: str | None = None, *, exact: bool = False) -> Any:
    """A session on the CPU; `exact` multiplies INT8 codes as the numbers that they stand for.

    ONNX Runtime multiplies the codes themselves where it can, and on an x86-64 CPU without VNNI adds such products in
    16 bits, which saturate.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Where weights are blocks of INT4, it would make codes of their activations, too.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if exact:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def refusal(model: Path) -> str | None:
    """None where ONNX Runtime takes a file, else one line: why not."""
    try:
        open_session(model.read_bytes(), None)
    except _refusals() as error:
        return one_line(error)
    return None


def _refusals() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        state.EPFail, state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf,
        state.NotImplemented, state.RuntimeException,
    )  # fmt: skip
