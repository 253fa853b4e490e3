"""For NVIDIA's own tools: an ONNX file that says where it comes from, inputs and outputs, and the lines to type.

`trtexec` reads raw arrays, Polygraphy its own JSON. With the four files model.onnx, inputs.json, outputs.json and
README.md a defect can be reported to NVIDIA: the lines build the engine that mlpdeploy builds, and check it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlpdeploy._version import __version__
from mlpdeploy.artifact.store import PROFILE
from mlpdeploy.engine.backend import LAYERS
from mlpdeploy.engine.features import HARDWARE, STREAMING, VERSION
from mlpdeploy.engine.nvidia import CURRENT
from mlpdeploy.engine.runner import Arrays
from mlpdeploy.engine.signature import Port, numpy_dtype

if TYPE_CHECKING:
    from mlpdeploy.export import Exported

MODEL, INPUTS, OUTPUTS, PAGE = "model.onnx", "inputs.json", "outputs.json", "README.md"
RTX = "tensorrt-rtx"
ENGINE = "engine"
"""The folder of what is known of the artifact's engine, in the forms of trtexec, which Polygraphy does not read."""
_LAYERS = {
    LAYERS: "the layers of the engine, in the form of `trtexec --exportLayerInfo`",
    PROFILE: "the time of each of them, in the form of `trtexec --exportProfile`",
}
_FEATURES = {
    HARDWARE: (["--hardware-compatibility-level", "AMPERE_PLUS"], "--hardwareCompatibilityLevel=ampere+"),
    VERSION: (["--version-compatible"], "--versionCompatible"),
    STREAMING: (["--weight-streaming"], "--allowWeightStreaming"),
}
"""How Polygraphy and trtexec are asked for what an engine is; of a stripped one they make the whole one."""
_ON_CPU = "Check the file itself, on a CPU"
SWITCH = "POLYGRAPHY_USE_TENSORRT_RTX=1"
"""In the environment of Polygraphy: which of the two flavours of TensorRT it takes."""


def write(found: Exported, folder: Path) -> list[str]:
    """Write the files into a folder; the lines to type there."""
    import onnx

    model = _named(found)
    onnx.save(model, folder / MODEL)
    inputs = {port.name: found.inputs[port.name].astype(numpy_dtype(port.dtype)) for port in found.signature.inputs}
    _polygraphy(inputs, found.outputs, folder)
    for side, arrays in (("input", inputs), ("output", found.outputs)):
        for name, file in _raw(side, arrays).items():
            (folder / file).write_bytes(np.ascontiguousarray(arrays[name]).tobytes())
    for name, text in found.layers.items():
        (folder / ENGINE).mkdir(exist_ok=True)
        (folder / ENGINE / name).write_text(text, encoding="utf-8")
    lines = _lines(found)
    if _has_fp4(found.model):
        del lines[_ON_CPU]
    (folder / PAGE).write_text(_page(found, model, lines), encoding="utf-8")
    return list(lines.values())


def _has_fp4(model: Any) -> bool:
    """Whether a file has codes that ONNX Runtime cannot read: `verify` gives it them in 8 bits."""
    from mlpdeploy.engine.forms import widen_fp4

    return widen_fp4.rewrite(model)[1] > 0


def _named(found: Exported) -> Any:
    """The model with where it comes from in its metadata."""
    from onnx import helper

    model = type(found.model)()
    model.CopyFrom(found.model)
    model.producer_name, model.producer_version = "mlpdeploy", __version__
    manifest, known = found.manifest, {entry.key: entry.value for entry in model.metadata_props}
    calibration = manifest.get("quantised") or {}
    said = {
        "network": found.selection.name,
        "part": found.part,
        "precision": found.selection.precision,
        "batch": found.selection.profile.text,
        "weights": manifest["weights"]["text"],
        "weights_sha256": found.weights_sha256,
        "calibration": calibration.get("data"),
        "calibrator": calibration.get("calibrator"),
        "built": manifest["created"],
    }
    helper.set_model_props(model, known | {f"mlpdeploy.{key}": str(value) for key, value in said.items() if value})
    return model


def _polygraphy(inputs: Arrays, outputs: Arrays, folder: Path) -> None:
    """Both sides in Polygraphy's JSON, which has no bfloat16: float32 holds every one of its values."""
    from polygraphy.comparator import IterationResult, RunResults
    from polygraphy.json import save_json
    from polygraphy.logger import G_LOGGER

    plain = {name: one.astype(np.float32) if one.dtype.name == "bfloat16" else one for name, one in inputs.items()}
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):
        save_json([plain], str(folder / INPUTS))
        results = RunResults()
        results.append(("pytorch", [IterationResult(dict(outputs), runner_name="pytorch")]))
        results.save(str(folder / OUTPUTS))


def _raw(side: str, names: Iterable[str]) -> dict[str, str]:
    """The file of each raw array, by the array's name: no two are the same."""
    found: dict[str, str] = {}
    for name in names:
        file = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
        while f"{side}-{file}.bin" in found.values():
            file += "_"
        found[name] = f"{side}-{file}.bin"
    return found


def _lines(found: Exported) -> dict[str, str]:
    """What is typed, by what it does."""
    tf32, level, rtx = found.selection.precision == "tf32", found.selection.level, found.selection.backend == RTX
    profiles = [_shapes(one, found.signature.inputs) for one in found.selection.profile.each]
    usual = found.selection.profile.usual
    data = ["--load-inputs", INPUTS, "--load-outputs", OUTPUTS]
    off = ["--rtol", "0", "--atol", *(f"{name}:{value:.3g}" for name, value in found.tolerances.items())]
    ranges = [
        word for shapes in profiles for end, of in shapes.items()
        for word in (f"--trt-{end}-shapes", *map(_brackets, of.items()))
    ]  # fmt: skip
    several = len(profiles) > 1
    options = [*([] if level is None else ["--builder-optimization-level", str(level)]), *(["--tf32"] if tf32 else [])]
    by_tool = [_FEATURES[feature] for feature in found.selection.features if feature in _FEATURES]
    options += [word for words, _ in by_tool for word in words]
    chosen = ["--optimization-profile", str(usual)] if several else []
    by_polygraphy = ["polygraphy", "run", MODEL, "--trt", "--strongly-typed", *ranges, *chosen, *options]
    tool = "tensorrt_rtx" if rtx else "trtexec"
    by_trtexec = [
        tool, f"--onnx={MODEL}", *([] if rtx else ["--stronglyTyped"]),
        *(
            word for place, shapes in enumerate(profiles)
            for word in ([f"--profile={place}"] if several else []) + [_ranges(end, of) for end, of in shapes.items()]
        ),
        *([f"--useProfile={usual}"] if several else []),
        f"--shapes={','.join(map(_crosses, profiles[usual]['opt'].items()))}",
        *([] if level is None else [f"--builderOptimizationLevel={level}"]), *(word for _, word in by_tool),
        *(_gpus(found.selection.gpus) if rtx else []), "--saveEngine=engine.plan",
    ]  # fmt: skip
    if not rtx:
        given = ",".join(map(":".join, _raw("input", profiles[usual]["opt"]).items()))
        by_trtexec += [*([] if tf32 else ["--noTF32"]), f"--loadInputs={given}", "--dumpOutput"]
    return {
        _ON_CPU: shlex.join(["polygraphy", "run", MODEL, "--onnxrt", *data, *off]),
        "Build the engine and check it": (f"{SWITCH} " if rtx else "") + shlex.join([*by_polygraphy, *data, *off]),
        f"Build the engine with {tool}, and time it": shlex.join(by_trtexec),
    }


def _gpus(names: Sequence[str]) -> list[str]:
    """What tensorrt_rtx builds for, where it is told: this machine's GPU, or compute capabilities times ten."""
    if CURRENT in names:
        return ["--useGpu"]
    return [f"--computeCapabilities={','.join(name.removeprefix('sm') for name in names)}"] if names else []


def _shapes(profile: tuple[int, int, int], ports: Iterable[Port]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of the inputs at each end of an optimisation profile."""
    ends = zip(("min", "opt", "max"), profile, strict=True)
    return {end: {port.name: (size, *port.shape) for port in ports} for end, size in ends}


def _ranges(end: str, of: Mapping[str, tuple[int, ...]]) -> str:
    return f"--{end}Shapes={','.join(map(_crosses, of.items()))}"


def _brackets(port: tuple[str, tuple[int, ...]]) -> str:
    return f"{port[0]}:[{','.join(map(str, port[1]))}]"


def _crosses(port: tuple[str, tuple[int, ...]]) -> str:
    return f"{port[0]}:{'x'.join(map(str, port[1]))}"


def _page(found: Exported, model: Any, lines: dict[str, str]) -> str:
    title = f"# {found.selection.name} in {found.selection.precision}, for TensorRT"
    file = "the file that mlpdeploy builds its engine from" if found.part is None else f"a part of it: {found.part}"
    about = (
        f"Written by mlpdeploy {__version__}. `{MODEL}` is {file}. "
        f"`{INPUTS}` has {found.rows} rows, `{OUTPUTS}` what PyTorch gives for each of them alone, in "
        "float32; the same as raw arrays are `input-*.bin` and `output-*.bin`. The tolerances are those of "
        "`mlpdeploy verify`."
    )
    layers = [f"`{ENGINE}/{name}` has {_LAYERS[name]}." for name in found.layers]
    if _ON_CPU not in lines:
        layers.append("ONNX Runtime has no FP4: no line checks the file on a CPU.")
    facts = [f"| {entry.key.removeprefix('mlpdeploy.')} | {entry.value} |" for entry in model.metadata_props]
    blocks = [f"{what}:\n\n```sh\n{line}\n```" for what, line in lines.items()]
    return (
        "\n\n".join([title, " ".join([about, *layers]), "\n".join(["| what | value |", "|---|---|", *facts]), *blocks])
        + "\n"
    )
