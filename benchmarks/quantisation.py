"""INT8, FP8, NVFP4, INT4 weights: speed on a CPU, TensorRT engines, what calibration costs, what accuracy is left.

    python -m benchmarks.quantisation --part speed [RECIPE ...]        OpenVINO INT8 and FP32, onnxruntime's quantiser
    python -m benchmarks.quantisation --part engines [RECIPE ...]      TensorRT-RTX engines: sizes and launches
    python -m benchmarks.quantisation --part weights [RECIPE ...]      the same of INT4 weights
    python -m benchmarks.quantisation --part fp4 [RECIPE ...]          the same of NVFP4, and FP8 beside it, for SM 12.0
    python -m benchmarks.quantisation --part calibration [RECIPE ...]  seconds and memory of calibrating on 128 images
    python -m benchmarks.quantisation --part accuracy4                 NVFP4 of the one with channels enough
    python -m benchmarks.quantisation --part accuracy                  trained networks on real images, one made hard

Each part adds its rows to the one result file.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from benchmarks import common
from benchmarks.cpu import compiled, torch_runner
from benchmarks.digits_quantised import accuracies, accuracies_of_fp4
from benchmarks.round_trip import round_trip
from mlpdeploy.engine.backend import BuildRequest, backends
from mlpdeploy.engine.backends.tensorrt import _programme
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.onnx.emit import Emitted, emit
from mlpdeploy.errors import InputError
from mlpdeploy.evidence.latency import timing
from mlpdeploy.graph.precision.plan import plan, require_codes
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.quantisation.calibrate import calibrate
from mlpdeploy.graph.quantisation.codes import NVFP4
from mlpdeploy.graph.quantisation.equalise import equalise
from mlpdeploy.graph.quantisation.sites import Quantisation, products, sites
from mlpdeploy.graph.quantisation.unfused import unfused
from mlpdeploy.graph.rewrite import Rewritten, rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from mlpdeploy.precisions import EIGHT_BIT
from mlpdeploy.zoo.recipe import recipes

SPEED = ("vip_s14", "mixer_b16", "resmlp_24", "gmlp_s16")
OURS, PLAIN, THEIRS = "openvino int8", "openvino fp32 plain", "openvino int8 by onnxruntime's quantiser"
EAGER, COMPILED = "eager fp32", "torch.compile fp32"
FP32 = (EAGER, COMPILED, PLAIN)
SETTINGS = {"threads": 1, "seconds": 20, "calibration rows": 8}


def ours(network: nn.Module, specs: list[TensorSpec], rows: Mapping[str, np.ndarray], beside: str) -> Emitted:
    """The INT8 file as `mlpdeploy build` makes it. Noise serves: time and size do not depend on the ranges."""
    rewritten = rewrite(trace(network, specs))
    return coded(rewritten, calibrate(rewritten, rows, "max"), beside)


def coded(rewritten: Rewritten, quantisation: Quantisation, beside: str) -> Emitted:
    """The file of a rewritten graph in 8 bits."""
    balanced = equalise(rewritten, quantisation.equalised)
    return emit(apply(balanced, plan(balanced, quantisation.precision, quantisation=quantisation, beside=beside)))


def theirs(given: Emitted, rows: Mapping[str, np.ndarray], folder: Path) -> Emitted:
    """The plain export through onnxruntime's static quantiser: QDQ, one scale for each output channel, its defaults."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            count = len(next(iter(rows.values())))
            self.left = iter([{name: values[i : i + 1] for name, values in rows.items()} for i in range(count)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    folder.mkdir(parents=True)
    onnx.save(given.model, folder / "plain.onnx")
    quant_pre_process(str(folder / "plain.onnx"), str(folder / "prepared.onnx"), skip_symbolic_shape=True)
    quantize_static(
        str(folder / "prepared.onnx"), str(folder / "quantised.onnx"), Reader(), quant_format=QuantFormat.QDQ,
        per_channel=True, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return Emitted(onnx.load(folder / "quantised.onnx"), given.typed)


def speed(name: str, seed: int) -> dict[str, Any]:
    """By batch size: every contender's latency, and ours over each of the others."""
    network, specs = common.load(name, seed)
    rows = common.inputs(specs, SETTINGS["calibration rows"], seed, 1)[0]
    threads, batch = SETTINGS["threads"], Batch(1, 1, 8)
    plain = common.plain(network, specs, "fp32")
    found: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        graphs = {
            OURS: (ours(network, specs, rows, "fp32"), "int8"),
            PLAIN: (plain, "fp32"),
            THEIRS: (theirs(plain, rows, folder / "quantiser"), "int8"),
        }
        runners: dict[str, Callable[[Any], object]] = {
            EAGER: torch_runner(network, specs), COMPILED: torch_runner(compiled(network), specs)
        }  # fmt: skip
        for contender, (graph, precision) in graphs.items():
            where = folder / contender.replace(" ", "-")
            runners[contender] = stack.enter_context(
                common.engine(backends()["openvino"], graph, precision, batch, threads, where)
            )
        for size in (1, 8):
            values = common.inputs(specs, size, seed)
            taken = timing.measure(runners, values, rounds=200, seconds=SETTINGS["seconds"], seed=seed)
            ratios = {rival: taken.ratio(OURS, rival) for rival in (*FP32, THEIRS)}
            fastest = min(FP32, key=lambda rival: taken.latency(rival).median)
            found[f"batch {size}"] = {
                "latency": taken.to_json(),
                "ours": {rival: {**asdict(ratio), "verdict": ratio.verdict} for rival, ratio in ratios.items()},
                "fastest_fp32": fastest,
                "speedup": 1 / ratios[fastest].value,
            }
            print(f"{name} batch {size}: {1 / ratios[fastest].value:.2f} times {fastest}, "
                  f"{1 / ratios[THEIRS].value:.2f} times {THEIRS}", flush=True)  # fmt: skip
    torch.compiler.reset()
    return found


GPUS = ("sm89", "sm120")
"""What every precision is built for here: GPUs that have all of them, but NVFP4, which the last one has alone."""

FP4 = ("mixer_s32", "mixer_b16", "resmlp_12", "vip_s14", "gmlp_s16", "ff_linear_base")


def engines(name: str, seed: int) -> dict[str, Any]:
    """Bytes and launches of TensorRT-RTX engines for GPUS by precision, and whether a file in 8 bits is the graph.

    `size` is the bytes over FP16's; `size_without_source` leaves the source of kernels out of both.
    """
    network, specs = common.load(name, seed)
    rows = common.inputs(specs, 2, seed, 1)[0]
    backend = backends()["tensorrt-rtx"]
    rewritten = rewrite(trace(network, specs), off=backend.off)
    found = {"fp16": _built(emit(apply(rewritten, plan(rewritten, "fp16"))), "fp16")}
    for precision in EIGHT_BIT:
        quantisation = calibrated(rewritten, rows, precision)
        row = _built(coded(rewritten, quantisation, "fp16"), precision)
        row |= {"size": _size(row, found["fp16"], 0), "size_without_source": _size(row, found["fp16"], 1)}
        found[precision] = row | {"round_trip": round_trip(rewritten, quantisation, rows)}
        launched = f"{row['launches']['total']} launches, FP16 {found['fp16']['launches']['total']}"
        told = f"{row['size']:.3f} of FP16's size, {launched}, {row['executed']}"
        print(f"{name} {precision}: {told}, {found[precision]['round_trip']}", flush=True)
    return found


def weights(name: str, seed: int) -> dict[str, Any]:
    """Bytes and launches of TensorRT-RTX engines for GPUS in FP16, and with weights of INT4; sizes as of `engines`.

    None where no product can read such weights.
    """
    network, specs = common.load(name, seed)
    rewritten = rewrite(trace(network, specs), off=backends()["tensorrt-rtx"].off)
    planned = plan(rewritten, "int4", beside="fp16")
    try:
        require_codes(rewritten, planned)
    except InputError as refused:
        print(f"{name}: {refused}", flush=True)
        return {"int4": None}
    fp16 = _built(emit(apply(rewritten, plan(rewritten, "fp16"))), "fp16")
    row = _built(emit(apply(rewritten, planned)), "int4")
    row |= {"size": _size(row, fp16, 0), "size_without_source": _size(row, fp16, 1)}
    launched = row["launches"]["total"]
    print(f"{name}: {row['size']:.3f} of FP16's size, {launched} launches, {row['executed']}", flush=True)
    return {"fp16": fp16, "int4": row}


def fp4(name: str, seed: int) -> dict[str, Any]:
    """Bytes and launches of TensorRT-RTX engines in FP16, FP8 and NVFP4 for GPUS that have the last; as `engines`.

    `products_of_fp4` are the launches that read two operands of FP4, by the engine itself. None where no product can.
    """
    network, specs = common.load(name, seed)
    rows = common.inputs(specs, 2, seed, 1)[0]
    rewritten = rewrite(trace(network, specs), off=backends()["tensorrt-rtx"].off)
    if not sites(rewritten.module, NVFP4).found:
        return {"nvfp4": None}
    found = {"fp16": _built(emit(apply(rewritten, plan(rewritten, "fp16"))), "fp16", GPUS[-1:])}
    for precision in ("fp8", "nvfp4"):
        quantisation = calibrated(rewritten, rows, precision)
        row = _built(coded(rewritten, quantisation, "fp16"), precision, GPUS[-1:])
        row |= {"size": _size(row, found["fp16"], 0), "size_without_source": _size(row, found["fp16"], 1)}
        found[precision] = row | {"sqnr_db": quantisation.sqnr_db["max"]}
        launched = f"{row['launches']['total']} launches, FP16 {found['fp16']['launches']['total']}"
        print(f"{name} {precision}: {row['size']:.3f} of FP16's size, {launched}, {row['executed']}", flush=True)
    taking = sites(rewritten.module, NVFP4).found.values()
    found["nvfp4"]["share_of_macs"] = sum(one.macs for one in taking) / _macs(rewritten)
    found["nvfp4"]["round_trip"] = round_trip(rewritten, quantisation, rows)
    return found


def calibrated(rewritten: Rewritten, rows: Mapping[str, np.ndarray], precision: str) -> Quantisation:
    """As `mlpdeploy build` does for TensorRT-RTX."""
    kept = unfused(rewritten.module) if precision == "fp8" else {}
    return calibrate(rewritten, rows, "max", precision, kept=kept)


def _macs(rewritten: Rewritten) -> int:
    """Multiply-accumulates of all products with a weight."""
    return sum(site.macs for site in products(rewritten.module).values())


def _built(emitted: Emitted, precision: str, gpus: tuple[str, ...] = GPUS) -> dict[str, Any]:
    request = BuildRequest(precision, Batch(1, 8, 32), gpus)
    with tempfile.TemporaryDirectory() as folder:
        built = backends()["tensorrt-rtx"].build(emitted, request, Path(folder), common.Silent())
        found = {key: built.facts[key] for key in ("engine_bytes", "executed", "launches")}
        return found | ({"products_of_fp4": _products_of_fp4(built.engine)} if precision == "nvfp4" else {})


def _products_of_fp4(engine: Path) -> int:
    """Launches of an engine that read two tensors of FP4."""
    programme = _programme.read(engine.read_bytes())[0]
    read = ([programme.tensors[name].dtype for name in one.reads if name in programme.tensors]
            for one in programme.statements)  # fmt: skip
    return sum(types.count("fp4_e2m1") == 2 for types in read)


def _size(row: Mapping[str, Any], fp16: Mapping[str, Any], without: int) -> float:
    mine, rival = (one["engine_bytes"] - without * one["launches"]["source_bytes"] for one in (row, fp16))
    return float(mine / rival)


def calibration(name: str, seed: int) -> dict[str, Any]:
    """Seconds and peak memory of `calibrate` with every calibrator on 128 images, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        found: dict[str, Any] = pool.apply(_calibration, (name, seed))
    print(f"{name}: {found['seconds']:.0f} s, {found['peak_mib']} MiB", flush=True)
    return found


def _calibration(name: str, seed: int) -> dict[str, Any]:
    network, specs = common.load(name, seed)
    rewritten = rewrite(trace(network, specs))
    rows = common.inputs(specs, 128, seed, 1)[0]
    torch.set_num_threads(2)
    began, began_cpu = time.perf_counter(), time.process_time()
    calibrate(rewritten, rows, "auto")
    seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    found = {"rows": 128, "calibrator": "auto", "threads": 2, "seconds": round(seconds, 1)}
    return found | {"cpu_seconds": round(cpu, 1), "peak_mib": peak}


PARTS: Mapping[str, tuple[Callable[[str, int], dict[str, Any]], tuple[str, ...]]] = {
    "speed": (speed, SPEED),
    "engines": (engines, tuple(recipes())),
    "weights": (weights, tuple(recipes())),
    "fp4": (fp4, FP4),
    "calibration": (calibration, ("vip_s14",)),
    "accuracy": (accuracies, ("vip_digits", "mixer_digits")),
    "accuracy4": (accuracies_of_fp4, ("mixer_digits",)),
}


def main() -> None:
    parser = common.parser(__doc__, ())
    parser.add_argument("--part", choices=list(PARTS), required=True)
    arguments = parser.parse_args()
    measure, names = PARTS[arguments.part]
    with _cores(arguments.part):
        for name in arguments.recipes or names:
            row = {f"{arguments.part} {name}": measure(name, arguments.seed)}
            path = common.write("quantisation", row, SETTINGS, arguments.out, alone=True)
    print(path)


@contextlib.contextmanager
def _cores(part: str) -> Iterator[None]:
    """One core for what is timed against each other; all of them for the rest."""
    if part != "speed":
        yield
        return
    with timing.pinned(SETTINGS["threads"]):
        torch.set_num_threads(SETTINGS["threads"])
        yield


if __name__ == "__main__":
    main()
