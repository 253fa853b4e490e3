"""INT8 and FP8 files: what every engine makes of them; a file that does not keep its promise fails the build."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from mlpdeploy.engine.backend import BuildRequest, backends
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.forms import keep_mean_axes
from mlpdeploy.engine.onnx.emit import Emitted, emit
from mlpdeploy.errors import BuildError, InputError
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.quantisation.calibrate import calibrate, outputs
from mlpdeploy.graph.quantisation.codes import CODES
from mlpdeploy.graph.quantisation.equalise import equalise
from mlpdeploy.graph.quantisation.sites import sites
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from mlpdeploy.zoo.vip import VisionPermutator

SHAPE = (3, 32, 32)


class Silent:
    def step(self, phase: str, done: int, total: int) -> None:
        assert done <= total


class Small(nn.Module):
    """A patch embedding, a ViP block with its three branches, a token-mixing product from the left, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vip = VisionPermutator(
            layers=(1,), dims=(32,), segments=(8,), transitions=(False,), patch_size=4, image_size=32, in_chans=3,
            num_classes=24,
        )  # fmt: skip
        self.tokens = nn.Linear(32, 32)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = self.tokens(x[:, 0].transpose(1, 2)).transpose(1, 2)
        logits: torch.Tensor = self.vip(x + mixed[:, None])
        return logits


def rows(count: int = 6) -> dict[str, np.ndarray]:
    return {"input": np.random.default_rng(0).standard_normal((count, *SHAPE)).astype(np.float32)}


@pytest.fixture(scope="module", params=["int8", "fp8"])
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def files(precision: str) -> dict[str, Emitted]:
    """The file of 8-bit codes by the precision beside them."""
    graph = rewrite(trace(Small().eval(), [TensorSpec("input", SHAPE, torch.float32)]))
    quantisation = calibrate(graph, rows(), "max", precision)
    balanced = equalise(graph, quantisation.equalised)
    found = len(sites(balanced.module, CODES[precision]).found)
    assert found == 9
    made = {}
    for beside in ("fp32", "fp16"):
        planned = plan(balanced, precision, quantisation=quantisation, beside=beside)
        assert len(planned.quantised) == found
        made[beside] = emit(apply(balanced, planned))
    return made


def nodes(model: onnx.ModelProto, kind: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == kind]


@pytest.mark.slow
@pytest.mark.parametrize("beside", ["fp32", "fp16"])
def test_weights_are_initialisers_of_codes_decoded_along_their_output_channels(
    files: dict[str, Emitted], precision: str, beside: str
) -> None:
    model = files[beside].model
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "Conv") or node.domain]
    quantised = [node for node in products if any(decoded(makers.get(name)) for name in node.input)]
    assert len(quantised) == 9
    for node in quantised:
        (source,) = [
            makers[name] for name in node.input if decoded(makers.get(name)) and makers[name].input[0] in tensors
        ]
        codes, scales = tensors[source.input[0]], tensors[source.input[1]]
        (axis,) = [attribute.i for attribute in source.attribute if attribute.name == "axis"]
        assert codes.data_type == {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}[precision]
        # The output channels: rows of the left operand, of a kernel and of Gemm's transposed weight, else columns.
        left = makers.get(node.input[0]) is source
        rows_first = left or node.op_type in ("Conv", "Gemm")
        assert axis % len(codes.dims) == (0 if rows_first else len(codes.dims) - 1)
        assert list(scales.dims) == [codes.dims[axis]]
        magnitudes = np.abs(numpy_helper.to_array(codes).astype(np.float64))
        assert magnitudes.max() == {"int8": 127, "fp8": 448}[precision]
    # No transpose of a weight is left, and no bias has an integer form.
    assert not any(decoded(makers.get(node.input[0])) and makers[node.input[0]].input[0] in tensors
                   for node in nodes(model, "Transpose"))  # fmt: skip
    assert all(tensor.data_type != TensorProto.INT32 for tensor in model.graph.initializer)


def decoded(node: onnx.NodeProto | None) -> bool:
    return node is not None and node.op_type == "DequantizeLinear"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_cpu_engine_computes_what_the_fake_quantised_graph_does(
    files: dict[str, Emitted], precision: str, name: str, tmp_path: Path
) -> None:
    emitted, backend = files["fp32"], backends()[name]
    assert backend.beside(precision) == "fp32" and backend.beside("fp16") is None
    built = backend.build(emitted, BuildRequest(precision, Batch(1, 2, 8), threads=1), tmp_path, Silent())
    expected = outputs(emitted.typed.module, rows(), emitted.typed.inputs)
    with backend.load(built.engine, built.facts) as run:
        found = run(rows())["output"]
    assert found.shape == expected.shape and np.isfinite(found).all()
    if name == "openvino" and precision == "int8":
        assert "i8" in built.facts["executed_by_type"]["FullyConnected"]
        cpu = Path("/proc/cpuinfo")
        if cpu.exists() and "vnni" not in cpu.read_text():
            pytest.skip("without VNNI, OpenVINO adds products of bytes in 16 bits, which saturate: no value holds")
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


def test_tensorrt_takes_the_codes(files: dict[str, Emitted], precision: str, tmp_path: Path) -> None:
    backend = backends()["tensorrt-rtx"]
    if (reason := backend.available()) is not None:
        pytest.skip(reason)
    from mlpdeploy.engine.backends.tensorrt import parse_prepared
    from mlpdeploy.engine.backends.tensorrt._follows_plan import check

    emitted = files["fp16"]
    parsed = parse_prepared(emitted.model)
    coded = [layer for layer in parsed.computing if layer.codes == (precision.upper(), precision.upper())]
    assert len(coded) == 9 == parsed.facts()["coded"] and all(layer.dtype == "HALF" for layer in coded)
    check(parsed, precision, quantised=emitted.quantised_nodes)
    with pytest.raises(BuildError, match="9 of 9 products would not compute"):
        check(parsed, {"int8": "fp8", "fp8": "int8"}[precision], quantised=emitted.quantised_nodes)
    # Without codes in front of one product, the network is not what the plan says.
    model = onnx.ModelProto()
    model.CopyFrom(emitted.model)
    product = next(
        node for node in model.graph.node if node.op_type == "MatMul" and node.name in emitted.quantised_nodes
    )
    makers = {output: node for node in model.graph.node for output in node.output}
    (place,) = (i for i, one in enumerate(product.input) if makers[one].input[0] in makers)
    product.input[place] = makers[makers[product.input[place]].input[0]].input[0]
    broken = Emitted(model, emitted.typed, emitted.fp32_nodes, emitted.quantised_nodes)
    with pytest.raises(BuildError, match=f"1 of 9 products would not compute with {precision.upper()} codes"):
        backend.build(broken, BuildRequest(precision, Batch(1, 2, 8)), tmp_path, Silent())


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_an_engine_without_codes_says_so(precision: str) -> None:
    from mlpdeploy.engine.backend import pick

    with pytest.raises(InputError, match=f"inductor has no {precision.upper()}"):
        pick("inductor", precision)


def test_fp8_is_refused_for_a_gpu_that_has_none() -> None:
    backend = backends()["tensorrt-rtx"]
    if (reason := backend.available()) is not None:
        pytest.skip(reason)
    for gpus in (("sm86",), ("sm120", "sm80")):
        refused = backend.supports("fp8", gpus)
        assert refused is not None and gpus[-1] in refused and "ask for int8" in refused and "\n" not in refused
        assert backend.supports("int8", gpus) is None
    assert backend.supports("fp8", ("sm89", "sm120")) is None is backend.supports("fp8")
    refused = backend.supports("int4", ("sm75",))
    assert refused is not None and "sm75 has no INT4" in refused and backend.supports("int4", ("sm86",)) is None


def test_turing_has_fp16_and_int8_alone() -> None:
    backend = backends()["tensorrt-rtx"]
    if (reason := backend.available()) is not None:
        pytest.skip(reason)
    for precision in ("fp32", "tf32", "bf16"):
        refused = backend.supports(precision, ("sm75", "sm86"))
        line = f"multiplies {precision.upper()} from compute capability 8.0 (Ampere and later) on, and not for sm75"
        assert refused is not None and line in refused and "ask for fp16" in refused and "\n" not in refused
        assert backend.supports(precision, ("sm86",)) is None is backend.supports(precision)
        assert "choose from" in (backend.supports(precision, ("86",)) or "")
    assert all(backend.supports(precision, ("sm75",)) is None for precision in ("fp16", "int8"))


@pytest.mark.slow
def test_an_fp8_engine_is_for_the_gpus_that_have_fp8(files: dict[str, Emitted], precision: str, tmp_path: Path) -> None:
    """Without --gpu too, where TensorRT-RTX would build for Ampere and refuse."""
    backend = backends()["tensorrt-rtx"]
    if (reason := backend.available()) is not None:
        pytest.skip(reason)
    built = backend.build(files["fp16"], BuildRequest(precision, Batch(2, 2, 2)), tmp_path, Silent())
    assert built.facts["executed"] == f"HALF, 9 of 11 products in {precision.upper()}"
    assert built.facts["launches"]["bytes_moved"] > 0


@pytest.mark.parametrize("beside", ["fp32", "fp16"])
def test_no_engine_leaves_out_a_relu_in_front_of_fp8(beside: str, tmp_path: Path) -> None:
    """ONNX Runtime does, of the file as PyTorch's exporter writes it."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 24)).eval()
    given = {"input": np.random.default_rng(0).standard_normal((6, 24)).astype(np.float32)}
    graph = rewrite(trace(network, [TensorSpec("input", (24,), torch.float32)]))
    quantisation = calibrate(graph, given, "max", "fp8")
    balanced = equalise(graph, quantisation.equalised)
    emitted = emit(apply(balanced, plan(balanced, "fp8", quantisation=quantisation, beside=beside)))
    assert not nodes(emitted.model, "Relu") and len(nodes(emitted.model, "Max")) == 2
    assert all("/" in node.name for node in nodes(emitted.model, "Max"))
    expected = outputs(emitted.typed.module, given, emitted.typed.inputs)
    for name in ("onnxruntime", "openvino"):
        backend = backends()[name]
        built = backend.build(emitted, BuildRequest("fp8", Batch(1, 2, 8), threads=1), tmp_path, Silent())
        with backend.load(built.engine, built.facts) as run:
            found = run(given)["output"]
        assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max(), name


def mean_product() -> onnx.ModelProto:
    """Quantise(mean(x) * s): what OpenVINO fuses wrongly."""
    factors = np.exp(np.random.default_rng(0).standard_normal(16)).astype(np.float32)
    constants = {"axes": np.array([1]), "s": factors, "scale": np.float32(0.02), "zero": np.array(0, np.int8)}
    made = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], "mean", keepdims=0),
        helper.make_node("Mul", ["mean", "s"], ["product"], "product"),
        helper.make_node("QuantizeLinear", ["product", "scale", "zero"], ["codes"], "quantise"),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"], "dequantise"),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["b", 9, 16]), ("y", ["b", 16]))]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    made_graph = helper.make_graph(made, "g", ports[:1], ports[1:], tensors)
    return helper.make_model(made_graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_mean_in_front_of_a_product_keeps_its_axes_for_openvino() -> None:
    openvino = pytest.importorskip("openvino")
    kept, count = keep_mean_axes.rewrite(mean_product())
    onnx.checker.check_model(kept)
    assert count == 1
    assert [node.op_type for node in kept.graph.node][:3] == ["ReduceMean", "Squeeze", "Mul"]
    x = np.random.default_rng(1).standard_normal((2, 9, 16)).astype(np.float32) + 0.5
    s = numpy_helper.to_array(kept.graph.initializer[1])
    expected = np.clip(np.round(x.mean(1) * s / 0.02), -128, 127) * 0.02
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(kept.SerializeToString()), "CPU")
    assert np.abs(compiled([x])[0] - expected).max() < 0.03


def test_other_means_are_left_alone() -> None:
    model = mean_product()
    model.graph.node[1].op_type = "Add"
    assert keep_mean_axes.rewrite(model) == (model, 0)
