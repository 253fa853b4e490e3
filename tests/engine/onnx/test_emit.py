"""The ONNX file: names that a reader knows, nothing of this machine, and what it means."""

from __future__ import annotations

import functools
import getpass
import os
import socket
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpdeploy.engine.forms import multiply_means, project_columns
from mlpdeploy.engine.onnx.emit import Emitted, emit
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from mlpdeploy.zoo.vip import VisionPermutator


def emitted(network: nn.Module, *specs: TensorSpec, precision: str = "fp32", io: str = "fp32") -> Emitted:
    rewritten = rewrite(trace(network, specs))
    return emit(apply(rewritten, plan(rewritten, precision, io)))


@functools.cache
def vip(precision: str = "fp32") -> Emitted:
    return new_vip(precision)


def new_vip(precision: str) -> Emitted:
    torch.manual_seed(0)
    network = VisionPermutator((2, 1), (8, 12), (4, 2), (True, False), patch_size=2, image_size=8, num_classes=5)
    return emitted(network, TensorSpec("image", (3, 8, 8), torch.float32), precision=precision)


def infer(model: onnx.ModelProto, **inputs: np.ndarray) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, inputs)
    return found


@pytest.mark.slow
def test_nodes_are_named_after_the_modules_of_the_network() -> None:
    names = [node.name for node in vip().model.graph.node]
    assert len(names) == len(set(names))
    expected = (
        "network.0.0.attn.mlp_h/segment_grouped_projection",
        "network.0.1.mlp.fc1/MatMul",
        "norm/LayerNormalization",
    )
    assert set(expected) <= set(names)
    assert all("/" in name for name in names if not name.startswith(("ReduceMean", "Cast", "Reshape", "Transpose")))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_file_is_valid_and_its_functions_are_its_own(precision: str) -> None:
    model = vip(precision).model
    onnx.checker.check_model(model, full_check=precision != "bf16")
    assert {(function.domain, function.name) for function in model.functions} == {
        ("mlpdeploy", "segment_grouped_projection")
    }
    assert {entry.domain for entry in model.opset_import} <= {"", "mlpdeploy"}
    used = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= used
    batch = {port.type.tensor_type.shape.dim[0].dim_param for port in (*model.graph.input, *model.graph.output)}
    assert batch == {"batch"}


@pytest.mark.slow
def test_nothing_of_this_machine_is_in_the_file() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(vip("fp16").model)
    for tensor in model.graph.initializer:
        tensor.raw_data = b""
    content = model.SerializeToString()
    here = [
        os.getcwd(),
        str(Path.home()),
        str(Path(torch.__file__).parent),
        str(Path(__file__).parent),
        socket.gethostname(),
    ]
    private = [text for text in (*here, getpass.getuser()) if len(text) > 4]
    assert not [text for text in private if text.encode() in content]
    assert b".py" not in content and b"stack_trace" not in content and b"pkg.torch" not in content


@pytest.mark.slow
def test_equal_networks_give_equal_files() -> None:
    assert vip("fp16").model.SerializeToString() == new_vip("fp16").model.SerializeToString()


@pytest.mark.slow
@pytest.mark.parametrize(("run", "changed"), [(None, 7), (4, 4), (2, 0)])
def test_a_cpu_engine_may_multiply_columns(run: int | None, changed: int) -> None:
    """The stages have runs of 2 and of 6 numbers, four and two projections; and one is the downsampling."""
    model = vip().model
    other, count = project_columns.rewrite(model, run)
    onnx.checker.check_model(other)
    kinds = Counter(node.op_type for node in other.graph.node if node.domain == "mlpdeploy")
    calls = Counter(node.op_type for node in model.graph.node)["segment_grouped_projection"]
    assert kinds["segment_grouped_projection_by_columns"] == count == changed and kinds.total() == calls
    used = {name for node in other.graph.node for name in node.input}
    assert {tensor.name for tensor in other.graph.initializer} <= used
    for batch in (1, 3):
        x = np.random.default_rng(0).standard_normal((batch, 3, 8, 8), dtype=np.float32)
        np.testing.assert_allclose(infer(other, image=x)[0], infer(model, image=x)[0], atol=1e-5)


class Means(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = x * 2
        whole = y.mean((1, 2)), y.mean((2, 1)) + 1, y.mean((1, 2), keepdim=True)
        return *whole, y.mean(2), y.mean((1, 2, 3)), y.mean(-1)


def test_onnx_runtime_gets_means_over_the_middle_axes_as_products() -> None:
    torch.manual_seed(0)
    model = emitted(Means(), TensorSpec("x", (3, 4, 6), torch.float32)).model
    other, count = multiply_means.rewrite(model)
    onnx.checker.check_model(other)
    counts = [Counter(node.op_type for node in one.graph.node) for one in (model, other)]
    changed = counts[0]["ReduceMean"] - counts[1]["ReduceMean"]
    assert changed == count == counts[1]["MatMul"] and changed in (1, 2)
    for batch in (1, 3):
        x = np.random.default_rng(0).standard_normal((batch, 3, 4, 6), dtype=np.float32)
        for one, two in zip(infer(other, x=x), infer(model, x=x), strict=True):
            np.testing.assert_allclose(one, two, atol=1e-6)
    half = emitted(Means(), TensorSpec("x", (3, 4, 6), torch.float32), precision="fp16").model
    assert multiply_means.rewrite(half) == (half, 0)


class Two(nn.Module):
    """Two inputs, an image and a vector of conditions; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.channels, self.condition = nn.Linear(6, 6), nn.Linear(4, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor, condition: Tensor) -> dict[str, Tensor]:
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        x = F.gelu(self.channels(x)) * self.condition(condition).unsqueeze(1)
        return {"tokens": x, "pooled": x.mean(1)}


def test_two_inputs_and_two_outputs_at_any_batch() -> None:
    torch.manual_seed(0)
    network = Two()
    specs = [TensorSpec("grid", (6, 4), torch.float32), TensorSpec("condition", (3,), torch.float32)]
    made = emitted(network, *specs)
    graph = made.model.graph
    assert [port.name for port in graph.input] == ["grid", "condition"]
    assert [port.name for port in graph.output] == [spec.name for spec in made.typed.outputs] == ["tokens", "pooled"]
    for batch in (1, 2, 7):
        x, c = torch.randn(batch, 6, 4), torch.randn(batch, 3)
        found = infer(made.model, grid=x.numpy(), condition=c.numpy())
        for one, other in zip(found, network(x, c).values(), strict=True):
            np.testing.assert_allclose(one, other.detach().numpy(), atol=1e-5)


class Repeating(nn.Module):
    """Returns a value twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        hidden = self.first(x)
        logits = self.last(hidden)
        return [hidden, logits], logits


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_output_that_is_returned_twice_has_two_names(precision: str) -> None:
    model = emitted(Repeating(), TensorSpec("x", (4,), torch.float32), precision=precision).model
    assert [value.name for value in model.graph.output] == ["output_0", "output_1", "output_2"]
    hidden, logits, again = infer(model, x=np.ones((5, 4), np.float32))
    assert (hidden.shape, logits.shape) == ((5, 3), (5, 2))
    assert np.array_equal(logits, again)


class Passing(nn.Module):
    """Returns its input, twice, beside a value."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x, x + 1, x


class Outward(nn.Module):
    """Calls its input as the one output is called."""

    def forward(self, output: Tensor) -> Tensor:
        return output * 2


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_input_that_is_returned_keeps_its_name(precision: str) -> None:
    model = emitted(Passing(), TensorSpec("x", (4,), torch.float32), precision=precision).model
    assert [value.name for value in model.graph.input] == ["x"]
    first, more, again = infer(model, x=np.ones((5, 4), np.float32))
    assert (first == 1).all() and (more == 2).all() and (again == 1).all()


def test_an_input_may_be_called_as_outputs_are() -> None:
    made = emitted(Outward(), TensorSpec("output", (4,), torch.float32))
    names = [value.name for value in (*made.model.graph.input, *made.model.graph.output)]
    assert names == ["output", made.typed.outputs[0].name] and len(set(names)) == 2
    (doubled,) = infer(made.model, output=np.ones((5, 4), np.float32))
    assert (doubled == 2).all()


class Halved(nn.Module):
    """Two views of every row in one batch, which are parted again: the parts are as large as the batch."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = (torch.cat([x, x.flip(-1)]) * 2).chunk(2)
        return first + second


def test_parts_as_large_as_the_batch_stay_as_large_as_it() -> None:
    """Whether a rule counts them, or the exporter divides what it is given."""
    traced, rows = trace(Halved(), [TensorSpec("x", (4,), torch.float32)]), torch.randn(5, 4)
    for disabled in (set(), {"resolve_shapes"}):
        parted = rewrite(traced, disabled=disabled)
        model = emit(apply(parted, plan(parted, "fp32"))).model
        for count in (1, 2, 5):
            np.testing.assert_array_equal(infer(model, x=rows[:count].numpy())[0], Halved()(rows[:count]).numpy())


class Overflowing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calm, self.wild = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.calm(torch.log1p(self.wild(torch.exp(F.relu(x) + 12)).abs()))


@pytest.mark.slow
def test_the_nodes_that_the_plan_keeps_in_fp32_are_named_and_are_fp32() -> None:
    torch.manual_seed(0)
    made = emitted(Overflowing(), TensorSpec("x", (4,), torch.float32), precision="fp16")
    assert made.fp32_nodes
    graph = onnx.shape_inference.infer_shapes(made.model).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    nodes = {node.name: node for node in graph.node}
    results = {kinds[nodes[name].output[0]] for name in made.fp32_nodes}
    # Comparisons answer in booleans, which no engine holds in FP16.
    assert onnx.TensorProto.FLOAT in results and results <= {onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL}
    assert any(name.startswith("wild/") for name in made.fp32_nodes)
    assert not any(name.startswith("calm/") for name in made.fp32_nodes)
    assert not vip("fp16").fp32_nodes
