"""Which form of an operation suits which CPU engine: segment-grouped projections by rows or columns, means or products.

    python -m benchmarks.forms [--seconds 5]

The shapes are those of the ViP networks. Both forms of one operation take turns on one core, FP32, batch 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, inliner, numpy_helper

from benchmarks import common
from benchmarks.tables import RESULTS
from mlpdeploy.engine.forms import multiply_means, project_columns
from mlpdeploy.engine.onnx.functions import OPSET, SEGMENTS, Body
from mlpdeploy.evidence.latency import timing
from mlpdeploy.graph.custom_ops import DOMAIN

PROJECTIONS = {"32 x (32, 32, 6)": (32, 32, 32, 6), "1 x (32, 1024, 8)": (1, 32, 1024, 8),
               "16 x (16, 16, 24)": (16, 16, 16, 24), "1 x (16, 256, 32)": (1, 16, 256, 32)}  # fmt: skip
"""Name: (batch, p, q, s) of a segment-grouped projection; the width branch counts the rows of an image to the batch."""

MEANS = {"(16, 16, 384)": (16, 16, 384), "(32, 32, 192)": (32, 32, 192)}
"""Name: (height, width, channels) of a mean over height and width."""


def projection(b: int, p: int, q: int, s: int) -> onnx.ModelProto:
    """One square segment-grouped projection."""
    size = p * s
    weight = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32) / size**0.5
    node = helper.make_node(SEGMENTS, ["x", "w"], ["y"], SEGMENTS, domain=DOMAIN, split=[0, 0, p, s])
    return _model([node], (b, p, q, s), (b, p, q, s), {"w": weight}, [Body().function()])


def mean(h: int, w: int, c: int) -> onnx.ModelProto:
    """One mean over the grid."""
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], "mean", keepdims=0)
    return _model([node], (1, h, w, c), (1, c), {"axes": np.array([1, 2])}, [])


def _model(
    nodes: list[onnx.NodeProto],
    taken: tuple[int, ...],
    given: tuple[int, ...],
    constants: dict[str, np.ndarray],
    functions: list[onnx.FunctionProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "form",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, taken)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, given)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)


def on_onnxruntime(model: onnx.ModelProto) -> Callable[[np.ndarray], object]:
    """The model in ONNX Runtime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})


def on_openvino(model: onnx.ModelProto) -> Callable[[np.ndarray], object]:
    """The model in OpenVINO on one thread, in FP32."""
    core = openvino.Core()
    flat = inliner.inline_local_functions(model)
    hints = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(flat.SerializeToString()), "CPU", hints)
    return lambda x: compiled([x])


def compare(
    first: tuple[str, onnx.ModelProto], second: tuple[str, onnx.ModelProto], shape: tuple[int, ...], seconds: float
) -> dict[str, Any]:
    """By engine: milliseconds of both forms, and the ratio of the second to the first."""
    rng, found = np.random.default_rng(0), {}
    inputs = [rng.standard_normal(shape, dtype=np.float32) for _ in range(8)]
    for engine, load in {"onnxruntime": on_onnxruntime, "openvino": on_openvino}.items():
        runs = {name: load(model) for name, model in (first, second)}
        taken = timing.measure(runs, inputs, rounds=2000, seconds=seconds)
        ratio = taken.ratio(second[0], first[0])
        medians = {f"{name}_ms": 1e3 * taken.latency(name).median for name in runs}
        found[engine] = {**medians, "ratio": {**asdict(ratio), "verdict": ratio.verdict}}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5, help="of each comparison (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with timing.pinned(1):
        for name, shape in PROJECTIONS.items():
            model = projection(*shape)
            results[f"projection {name}"] = compare(
                ("rows", model), ("columns", project_columns.rewrite(model)[0]), shape, arguments.seconds
            )
        for name, grid in MEANS.items():
            model = mean(*grid)
            results[f"mean {name}"] = compare(
                ("mean", model), ("product", multiply_means.rewrite(model)[0]), (1, *grid), arguments.seconds
            )
    for name, engines in results.items():
        for engine, row in engines.items():
            print(f"{name:32s} {engine:12s} {row['ratio']['value']:.3f} {row['ratio']['verdict']}")
    print(common.write("forms", results, {"threads": 1, "seconds": arguments.seconds, "batch": 1}, arguments.out))


if __name__ == "__main__":
    main()
