"""DeepEraser: its iteration against the formula, and a network of two inputs and eight outputs through the product."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import mlpdeploy
from mlpdeploy import commands, pipeline
from mlpdeploy.network import random_weights
from mlpdeploy.network.finding import find
from mlpdeploy.progress import Stages
from mlpdeploy.selection import Selection
from mlpdeploy.stages import load
from mlpdeploy.terminal.artifacts import print_artifact
from mlpdeploy.terminal.catalogue import print_catalogue
from mlpdeploy.zoo import deep_eraser
from mlpdeploy.zoo.deep_eraser import DeepEraser, ResidualBlock, SeparableGru
from tests.graph.proof import prove
from tests.zoo import proof
from tests.zoo.official import official

SHAPES = ((3, 8, 10), (1, 8, 10))


def normalised(x: Tensor) -> Tensor:
    centred = x - x.mean((2, 3), keepdim=True)
    return centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()


def along(x: Tensor, layer: nn.Module, dim: int) -> Tensor:
    """A convolution with five taps along one dimension, zeros beyond the image."""
    taps, bias = layer.get_parameter("weight").flatten(2), layer.get_parameter("bias")
    padded = F.pad(x, (2, 2, 0, 0) if dim == 3 else (0, 0, 2, 2))
    parts = [torch.einsum("oi,bihw->bohw", taps[..., t], padded.narrow(dim, t, x.shape[dim])) for t in range(5)]
    return torch.stack(parts).sum(0) + bias[:, None, None]


def test_gru_goes_along_the_rows_and_then_along_the_columns() -> None:
    gru = SeparableGru().double()
    random_weights.randomise(gru, 1)
    state, x = torch.randn(2, 64, 6, 7, dtype=torch.float64), torch.randn(2, 128, 6, 7, dtype=torch.float64)
    expected = state
    for index, dim in ((1, 3), (2, 2)):
        gates = {gate: gru.get_submodule(f"conv{gate}{index}") for gate in "zrq"}
        both = torch.cat([expected, x], 1)
        z, r = (torch.sigmoid(along(both, gates[gate], dim)) for gate in "zr")
        q = torch.tanh(along(torch.cat([r * expected, x], 1), gates["q"], dim))
        expected = expected + z * (q - expected)
    torch.testing.assert_close(gru(state, x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("out", [4, 6])
def test_residual_block_normalises_each_image_and_channel(out: int) -> None:
    block = ResidualBlock(4, out).double().eval()
    random_weights.randomise(block, 1)
    x = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    inner = F.relu(normalised(block.conv1(x)))
    skipped = x if out == 4 else normalised(block.downsample[0](x))  # type: ignore[index]
    expected = F.relu(skipped + F.relu(normalised(block.conv2(inner))))
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)


def test_every_iteration_adds_to_the_image_itself() -> None:
    network = DeepEraser(iterations=3).double().eval()
    random_weights.randomise(network, 0)
    image, mask = torch.rand(2, 3, 8, 10, dtype=torch.float64), torch.rand(2, 1, 8, 10, dtype=torch.float64)
    features = network.fnet(torch.cat([image, mask], 1))
    state, context = torch.tanh(features[:, :64]), torch.relu(features[:, 64:])
    restored = image
    for found in network(image, mask):
        state, difference = network.update_block(state, context, restored)
        restored = image + difference
        torch.testing.assert_close(found, restored, rtol=1e-12, atol=1e-12)


def test_rewritten_graph_is_equal_at_every_batch() -> None:
    result = prove(DeepEraser(iterations=2), *SHAPES, batches=(1, 2, 5))
    assert [spec.name for spec in result.outputs] == ["output_0", "output_1"]


def test_every_parameter_matters() -> None:
    network = DeepEraser(iterations=2).double().eval()
    random_weights.randomise(network, 0)
    network(*(torch.rand(2, *shape, dtype=torch.float64) for shape in SHAPES))[-1].square().sum().backward()
    dead = {name for name, p in network.named_parameters() if p.grad is None or float(p.grad.abs().max()) < 1e-12}
    # The bias in front of a normalisation over the grid is gone after it.
    shifts = {name for name, _ in network.named_parameters() if name.startswith("fnet.") and name.endswith(".bias")}
    assert dead == shifts - {"fnet.conv2.bias"}


def test_any_size_but_none_is_taken() -> None:
    assert len(deep_eraser.deeperaser(image_size=8)(torch.rand(1, 3, 8, 12), torch.rand(1, 1, 8, 12))) == 8
    with pytest.raises(ValueError, match="cannot be 0x0"):
        deep_eraser.deeperaser(image_size=0)


def test_official_checkpoint_loads_strictly_as_data_parallel_saved_it(tmp_path: Path) -> None:
    state = official("deeperaser").random()
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "deeperaser.pth")
    network = mlpdeploy.reference("deeperaser", checkpoint=tmp_path / "deeperaser.pth")
    assert network.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_two_inputs_are_listed_by_name() -> None:
    console = Console(file=io.StringIO(), width=80, no_color=True)
    print_catalogue(console, commands.catalogue("deeperaser"), detailed=True)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert any(line.split()[:3] == ["deeperaser", "2", "inputs"] for line in lines)
    assert "    takes image 3x224x224 of 0 to 1, mask 1x224x224 of 0 to 1" in lines


def test_image_size_is_that_of_both_inputs() -> None:
    source = load(Selection("deeperaser", image_size=32), Stages())
    assert [(spec.name, spec.shape) for spec in source.specs()] == [("image", (3, 32, 32)), ("mask", (1, 32, 32))]
    assert find("deeperaser").num_classes is None


@pytest.mark.large
def test_builds_verifies_and_is_inspected(tmp_path: Path) -> None:
    selection = Selection(
        "deeperaser", precision="fp32", backend="onnxruntime", batch="1:1:2", image_size=16, out=tmp_path
    )
    artifact = pipeline.build(selection)
    assert [port["name"] for port in artifact.manifest["inputs"]] == ["image", "mask"]
    assert [port["name"] for port in artifact.manifest["outputs"]] == [f"output_{index}" for index in range(8)]
    verification = pipeline.verify(selection)
    assert verification.passed, verification.verdict()
    assert {check.output for stage in verification.stages for check in stage.checks} == {
        f"output_{index}" for index in range(8)
    }
    console = Console(file=io.StringIO(), width=80, no_color=True)
    print_artifact(console, commands.inspect(str(artifact.folder)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "image float32 batch x 3 x 16 x 16" in text
    assert "mask float32 batch x 1 x 16 x 16" in text
    assert "output_0, ..., output_7 float32 batch x 3 x 16 x 16" in text
    report = (artifact.folder / "report.md").read_text(encoding="utf-8")
    assert "`mask` float32 [batch, 1, 16, 16]" in report


@pytest.mark.large
def test_recipe_is_proved_on_small_images() -> None:
    found = proof.climb(Selection("deeperaser", precision="fp16", batch=proof.BATCH, image_size=32))
    assert found.passed, "; ".join(f"{stage.name}: {stage.reason}" for stage in found.stages)
