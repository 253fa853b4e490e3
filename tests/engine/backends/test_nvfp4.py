"""NVFP4: its numbers, the file's own definition of them, what TensorRT takes them for, and who refuses them."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from mlpdeploy import pipeline
from mlpdeploy.engine.backend import BuildRequest, backends, pick
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.forms import widen_fp4
from mlpdeploy.engine.onnx import fp4
from mlpdeploy.engine.onnx.emit import Emitted, emit
from mlpdeploy.errors import BuildError, InputError
from mlpdeploy.evidence.proof.runs import onnx_run, typed_run
from mlpdeploy.graph import custom_ops
from mlpdeploy.graph.precision import by_rows
from mlpdeploy.graph.precision.plan import plan, require_codes
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.quantisation.calibrate import calibrate, outputs, sqnr_db
from mlpdeploy.graph.quantisation.codes import NVFP4, coded_fp4
from mlpdeploy.graph.quantisation.sites import sites
from mlpdeploy.graph.rewrite import Rewritten, rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from mlpdeploy.selection import Selection
from mlpdeploy.terminal.cli import main
from tests.engine.backends.test_coded import Silent, nodes
from tests.engine.backends.test_coded import Small as Segmented
from tests.engine.backends.test_coded import rows as segmented_rows

SHAPE = (4, 4, 64)


class Small(nn.Module):
    """Channels mixed on a grid, by a product without bias, one from the left, and two too narrow for blocks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 128), nn.Linear(128, 64)
        self.plain, self.tokens = nn.Linear(64, 64, bias=False), nn.Linear(16, 16)
        self.narrow, self.head = nn.Linear(64, 24), nn.Linear(24, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        x = self.plain(x).flatten(1, 2)
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        logits: torch.Tensor = self.head(self.narrow(x))
        return logits


def rows(count: int = 6) -> dict[str, np.ndarray]:
    return {"input": np.random.default_rng(0).standard_normal((count, *SHAPE)).astype(np.float32)}


@pytest.fixture(scope="module")
def graph() -> Rewritten:
    return rewrite(trace(Small().eval(), [TensorSpec("input", SHAPE, torch.float32)]))


@pytest.fixture(scope="module")
def files(graph: Rewritten) -> dict[str, Emitted]:
    """The file by the precision beside its codes."""
    found = calibrate(graph, rows(), precision="nvfp4")
    assert found.calibrator == "max" and not found.equalised
    return {
        beside: emit(apply(graph, plan(graph, "nvfp4", quantisation=found, beside=beside)))
        for beside in ("fp32", "fp16")
    }


def hostile_rows() -> np.ndarray:
    """Ordinary blocks, zeros, one wide number, tiny ones, ties, and values beyond the calibrated range."""
    made = np.random.default_rng(1).standard_normal((7, 32)).astype(np.float32)
    made[1] = 0
    made[2, 3] = 40.0
    made[3] *= 1e-6
    made[4, :8] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0]
    made[5] *= 1e4
    made[6, :16] = 0
    return made


def test_numbers_are_those_of_e2m1() -> None:
    values = np.concatenate([np.linspace(-7, 7, 1121), [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 1e9, -1e9]])
    expected = values.clip(-6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float64)
    np.testing.assert_array_equal(custom_ops.to_fp4(torch.from_numpy(values)).numpy(), expected)


@pytest.mark.parametrize("scale", [3.0 / NVFP4.largest, 1e-7])
def test_the_function_of_the_file_is_the_operation_of_the_graph(scale: float) -> None:
    """ONNX's own reference, which has E2M1, computes the function as it stands."""
    given, number = hostile_rows(), np.float32(scale)
    told = custom_ops.coded_fp4(torch.from_numpy(given), torch.tensor(number)).numpy()
    made = [
        helper.make_node(
            fp4.NAME, ["x", "scale"], ["codes", "scales"], domain=fp4.DOMAIN, axis=-1, block_size=16, scale_type=17
        ),
        helper.make_node("DequantizeLinear", ["scales", "scale"], ["steps"]),
        helper.make_node("DequantizeLinear", ["codes", "steps"], ["y"], axis=1, block_size=16),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [7, 32]) for name in ("x", "y")]
    constants = [numpy_helper.from_array(np.array(number), "scale")]
    opsets = [helper.make_opsetid("", fp4.OPSET), helper.make_opsetid(fp4.DOMAIN, 1)]
    model = helper.make_model(
        helper.make_graph(made, "g", ports[:1], ports[1:], constants),
        opset_imports=opsets, functions=[fp4.function()], ir_version=11,
    )  # fmt: skip
    onnx.checker.check_model(model)
    (found,) = ReferenceEvaluator(model).run(None, {"x": given})
    assert np.isfinite(told).all() and not told[1].any()
    np.testing.assert_allclose(found, told, rtol=1e-6)


def test_a_code_is_off_by_a_quarter_at_most_where_the_range_was_seen() -> None:
    given = hostile_rows()[[0, 2, 4]]
    told = custom_ops.coded_fp4(torch.from_numpy(given), torch.tensor(40.0 / NVFP4.largest)).numpy()
    largest = np.abs(given.reshape(3, -1, 16)).max(-1).repeat(16, -1)
    assert (np.abs(told - given) <= largest * (1 / 6 + 0.07)).all()
    # Beyond the range, a block saturates at six times the largest scale.
    beyond = custom_ops.coded_fp4(torch.full((1, 16), 1e6), torch.tensor(40.0 / NVFP4.largest))
    assert torch.allclose(beyond, torch.tensor(40.0))


def test_weights_have_the_scales_that_lose_least() -> None:
    matrix = torch.from_numpy(np.random.default_rng(0).standard_normal((24, 64)))
    matrix[3], matrix[4, 0], matrix[5] = 0.0, 30.0, matrix[5] * 1e-9
    codes, scales, scale = coded_fp4(matrix)
    assert codes.shape == (24, 64) and scales.shape == (24, 4) and scale.dtype == torch.float32
    told = custom_ops.dequantise_blocks(codes, scales.double() * scale.double(), 1, 16)
    assert torch.equal(custom_ops.to_fp4(codes.double()), codes.double()) and not told[3].any()
    plain = custom_ops.coded_fp4(matrix, scale.double())
    assert ((told - matrix) ** 2).sum() < 0.98 * ((plain - matrix) ** 2).sum()
    zeros = coded_fp4(torch.zeros(16, 32))
    assert not zeros[0].double().any() and float(zeros[2]) > 0


def test_what_takes_blocks_and_why_the_rest_does_not(graph: Rewritten) -> None:
    found = sites(graph.module, NVFP4)
    assert [site.module for site in found.found.values()] == ["up", "down", "plain", "narrow"]
    reasons = {found.modules[name]: reason for name, reason in found.refused.items()}
    assert "left of the activation" in reasons["tokens"] and "24 input channels make no blocks of 16" in reasons["head"]
    small = rewrite(trace(nn.Sequential(nn.Conv2d(16, 16, 2)).eval(), [TensorSpec("input", (16, 8, 8), torch.float32)]))
    given = {"input": np.ones((2, 16, 8, 8), np.float32)}
    with pytest.raises(InputError, match="takes NVFP4: it is a convolution, of which TensorRT makes no blocks of FP4"):
        require_codes(small, plan(small, "nvfp4", quantisation=calibrate(small, given, precision="nvfp4")))


@pytest.mark.parametrize("beside", ["fp32", "fp16"])
def test_the_file_holds_two_codes_in_a_byte_and_says_what_it_computes(files: dict[str, Emitted], beside: str) -> None:
    emitted = files[beside]
    held = [tensor for tensor in emitted.model.graph.initializer if tensor.data_type == TensorProto.FLOAT4E2M1]
    assert len(held) == 4 == len(emitted.quantised_nodes)
    assert all(2 * len(tensor.raw_data) == np.prod(tensor.dims) for tensor in held)
    assert [function.name for function in emitted.model.functions] == [fp4.NAME]
    assert {one.domain: one.version for one in emitted.model.opset_import} == {"": 23, "trt": 1}
    blocked = [
        a.i for node in nodes(emitted.model, "DequantizeLinear") for a in node.attribute if a.name == "block_size"
    ]
    assert blocked == [16] * 8
    given = rows()
    expected = typed_run(emitted.typed.module, emitted.typed.inputs, ["output"])(given)["output"]
    found = onnx_run(emitted.model, 1)(given)["output"]
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


def test_codes_of_fp8_are_the_same_numbers(files: dict[str, Emitted]) -> None:
    model = files["fp32"].model
    before = model.SerializeToString()
    wide, count = widen_fp4.rewrite(model)
    assert count == 5 and model.SerializeToString() == before
    onnx.checker.check_model(wide)
    assert TensorProto.FLOAT4E2M1 not in {tensor.data_type for tensor in wide.graph.initializer}
    for narrow, other in zip(model.graph.initializer, wide.graph.initializer, strict=True):
        one, two = (numpy_helper.to_array(tensor).astype(np.float64) for tensor in (narrow, other))
        np.testing.assert_array_equal(one, two)
    assert widen_fp4.rewrite(wide) == (wide, 0)


def test_tensorrt_takes_its_own_operation_and_multiplies_fp4(files: dict[str, Emitted], tmp_path: Path) -> None:
    backend = backends()["tensorrt-rtx"]
    if (reason := backend.available()) is not None:
        pytest.skip(reason)
    from mlpdeploy.engine.backends.tensorrt import _programme

    emitted, request = files["fp16"], BuildRequest("nvfp4", Batch(2, 2, 2), ("sm120",))
    built = backend.build(emitted, request, tmp_path, Silent())
    assert built.facts["executed"] == "HALF, 4 of 6 products in NVFP4"
    assert built.facts["parsed"]["by_type"]["DYNAMIC_QUANTIZE"] == 4
    assert built.facts["launches"]["bytes_moved"] > 0
    programme = _programme.read(built.engine.read_bytes())[0]
    types = [[programme.tensors[name].dtype for name in one.reads] for one in programme.statements]
    assert sum(read.count("fp4_e2m1") == 2 for read in types) == 4
    # An activation as it is, in front of one product, is not what the plan says.
    model = onnx.ModelProto()
    model.CopyFrom(emitted.model)
    product = next(node for node in nodes(model, "Gemm") if node.name in emitted.quantised_nodes)
    makers = {name: node for node in model.graph.node for name in node.output}
    product.input[0] = makers[makers[makers[product.input[0]].input[0]].input[0]].input[0]
    broken = Emitted(model, emitted.typed, emitted.fp32_nodes, emitted.quantised_nodes)
    with pytest.raises(BuildError, match="1 of 4 products would not compute with NVFP4 codes"):
        backend.build(broken, request, tmp_path, Silent())


@pytest.mark.slow
@pytest.mark.parametrize("enabled", [(), ("fuse_epilogues", "activate_projections")], ids=["plain", "with epilogues"])
def test_segments_are_moved_to_where_blocks_lie(enabled: tuple[str, ...]) -> None:
    """A ViP block: the graph in codes is off by what codes cost, and the file computes what it does."""
    graph = rewrite(trace(Segmented().eval(), [TensorSpec("input", (3, 32, 32), torch.float32)]), (), enabled)
    taking = sites(graph.module, NVFP4).found
    nodes = [node for node in graph.module.graph.nodes if node.name in taking]
    segmented = [node for node in nodes if node.target in by_rows.SEGMENTED]
    assert any(node.target is custom_ops.WITH_EPILOGUE for node in segmented) == bool(enabled)
    given = segmented_rows()
    found = calibrate(graph, given, precision="nvfp4")
    planned = plan(graph, "nvfp4", quantisation=found, beside="fp32")
    assert planned.quantised.keys() == taking.keys() and len(segmented) == 2 + bool(enabled)
    typed = apply(graph, planned)
    assert 15 < found.sqnr_db["max"] < 40
    expected, file = outputs(typed.module, given, typed.inputs), onnx_run(emit(typed).model, 1)(given)["output"]
    assert sqnr_db(expected, file) > 30


def test_only_gpus_that_have_fp4_are_built_for() -> None:
    backend = backends()["tensorrt-rtx"]
    if (reason := backend.available()) is not None:
        pytest.skip(reason)
    refused = backend.supports("nvfp4", ("sm89", "sm120"))
    assert refused is not None and "sm89 has no NVFP4" in refused and "(Blackwell)" in refused and "\n" not in refused
    assert backend.supports("nvfp4", ("sm120",)) is None is backend.supports("nvfp4")
    refused = backends()["tensorrt"].supports("nvfp4")
    assert refused == "backend tensorrt builds no NVFP4 here yet: ask for --backend tensorrt-rtx, or for fp8"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend", "openvino"], "backend openvino has no NVFP4: "),
        (["--backend", "inductor"], "backend inductor has no NVFP4"),
        (["--backend", "onnxruntime", "--calibrator", "entropy"], "--calibrator entropy is for int8 and fp8"),
        (["--backend", "onnxruntime"], "NVFP4 needs --calibration"),
    ],
)
def test_who_refuses_says_so_in_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [] if message.startswith("NVFP4 needs") else ["--calibration", "random"]
    with pytest.raises(SystemExit) as left:
        main(["build", "tests.engine.backends.test_nvfp4:Small", "--input-shape", "4,4,64", "--precision", "nvfp4",
              "--out", str(tmp_path), *given, *options])  # fmt: skip
    error = capsys.readouterr().err
    assert left.value.code in (2, 3) and message in error and "Traceback" not in error


@pytest.mark.slow
def test_an_engine_of_nvfp4_is_built_and_proved(tmp_path: Path) -> None:
    name = "tests.engine.backends.test_nvfp4:Small"
    chosen = Selection(
        name, "nvfp4", "onnxruntime", out=tmp_path, batch="1:2:3", input_shape=SHAPE, calibration="random", limit=8
    )
    artifact = pipeline.build(chosen, worth=False)
    coded = artifact.manifest["quantised"]
    assert coded["precision"] == "nvfp4" and coded["calibrator"] == "max"
    assert 1 <= coded["sites"] <= 4 == coded["of_sites"] and len(coded["refused"]) == 2
    assert pick("onnxruntime", "nvfp4").beside("nvfp4") == "fp32"
    verification = pipeline.verify(chosen)
    assert [stage.status for stage in verification.stages] == ["passed"] * 8, verification.verdict()
