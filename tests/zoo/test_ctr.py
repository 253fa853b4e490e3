"""FinalMLP and DualMLP: the mathematics, FuxiCTR's checkpoints, and integer ids through the whole product."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import mlpdeploy
from mlpdeploy.errors import CheckpointError, InputError
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from mlpdeploy.network import random_weights
from mlpdeploy.progress import Stages
from mlpdeploy.selection import Selection
from mlpdeploy.stages import load
from mlpdeploy.zoo import final_mlp
from mlpdeploy.zoo.final_mlp import Tower, dualmlp, finalmlp
from tests.conftest import Cli
from tests.zoo.official import official
from tests.zoo.proof import prove

VOCABULARY = {"user": 7, "item": 5, "hour": 9}
IDS = torch.stack([torch.arange(13) % size for size in VOCABULARY.values()], 1)
OPTIONS: dict[str, Any] = dict(vocabulary=VOCABULARY, dim=4, first=Tower((8, 6)), second=Tower((10,)))


def tiny(**options: Any) -> final_mlp.FinalMLP:
    given = dict(gate=Tower((5,)), contexts=((), ("hour", "user")), heads=2)
    network = finalmlp(**(OPTIONS | given | options)).double().eval()
    random_weights.randomise(network, 1)
    return network


def test_finalmlp_is_the_formula_of_the_paper() -> None:
    network = tiny()
    own, gates, fusion = network.embedding_layer.embedding_layer, network.fs_module, network.fusion_module
    assert gates is not None
    tables = [table.weight for table in own.embedding_layers.values()]
    embedded = torch.stack([table[IDS[:, i]] for i, table in enumerate(tables)], 1).flatten(1)
    context = gates.fs2_ctx_emb.embedding_layer.embedding_layers
    # The fields of a context are read in the order of the columns, not in that of its list.
    read = torch.cat([context["user"].weight[IDS[:, 0]], context["hour"].weight[IDS[:, 2]]], 1)
    constant = gates.fs1_ctx_bias.repeat(len(IDS), 1)
    one = network.mlp1(embedded * 2 * gates.fs1_gate(constant)).reshape(-1, 2, 3)
    two = network.mlp2(embedded * 2 * gates.fs2_gate(read)).reshape(-1, 2, 5)
    bilinear = torch.einsum("bkx,kxy,bky->b", one, fusion.w_xy.reshape(2, 3, 5), two)
    linear = fusion.w_x(one.flatten(1)) + fusion.w_y(two.flatten(1))
    torch.testing.assert_close(network(IDS), torch.sigmoid(linear + bilinear[:, None]), rtol=1e-12, atol=1e-12)


def test_without_gates_both_streams_read_the_embeddings() -> None:
    network = tiny(gate=None)
    embedded = network.embedding_layer(IDS)
    expected = torch.sigmoid(network.fusion_module(network.mlp1(embedded), network.mlp2(embedded)))
    torch.testing.assert_close(network(IDS), expected)


def test_dualmlp_adds_its_streams() -> None:
    network = dualmlp(**OPTIONS).double().eval()
    embedded = network.embedding_layer(IDS)
    torch.testing.assert_close(network(IDS), torch.sigmoid(network.mlp1(embedded) + network.mlp2(embedded)))


def test_every_parameter_matters() -> None:
    network = tiny()
    loss: Tensor = network(IDS).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert not [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]


def test_streams_that_do_not_split_into_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="6 and 10 features do not split into 4 heads"):
        tiny(heads=4)


TRAINED: dict[str, dict[str, Any]] = {
    "as published": {},
    "without gates": dict(gate=None, contexts=((), ())),
    "both contexts": dict(contexts=(("item",), ("user",))),
    "batch norm": dict(first=Tower((8, 6), batch_norm=True), second=Tower((10, 10), batch_norm=True)),
    "dropout": dict(first=Tower((8, 6), dropout=True)),
    "batch norm and dropout": dict(first=Tower((8, 6), True, True), gate=Tower((5, 4))),
}


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("prefix", ["", "net."])
def test_a_checkpoint_tells_its_fields_and_sizes(name: str, prefix: str, tmp_path: Path) -> None:
    network = tiny(**TRAINED[name])
    path = tmp_path / "trained.model"
    torch.save({f"{prefix}{key}": value.float() for key, value in network.state_dict().items()}, path)
    loaded = mlpdeploy.reference("finalmlp", checkpoint=path)
    torch.testing.assert_close(loaded(IDS), network.float()(IDS))


def test_a_checkpoint_of_dualmlp_tells_its_fields_and_sizes(tmp_path: Path) -> None:
    network = dualmlp(**OPTIONS).eval()
    torch.save(network.state_dict(), tmp_path / "trained.model")
    torch.testing.assert_close(mlpdeploy.reference("dualmlp", checkpoint=tmp_path / "trained.model")(IDS), network(IDS))


def test_ids_are_drawn_below_the_smallest_number_of_ids_of_the_checkpoint(tmp_path: Path) -> None:
    torch.save(tiny().state_dict(), tmp_path / "trained.model")
    source = load(Selection("finalmlp", checkpoint=tmp_path / "trained.model"), Stages())
    assert source.specs() == [TensorSpec("ids", (3,), torch.int64, 0, 5)]


def test_the_published_form_loads_from_a_file(tmp_path: Path) -> None:
    state = official("finalmlp").random()
    torch.save(state, tmp_path / "finalmlp.model")
    network = mlpdeploy.reference("finalmlp", checkpoint=tmp_path / "finalmlp.model")
    key = "fusion_module.w_xy"
    assert torch.equal(network.state_dict()[key], state[f"net.{key}"])


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    torch.save(dualmlp(**OPTIONS).state_dict(), tmp_path / "dual.model")
    with pytest.raises(CheckpointError, match="this looks like dualmlp"):
        mlpdeploy.reference("finalmlp", checkpoint=tmp_path / "dual.model")
    state = tiny().state_dict() | {"embedding_layer.embedding_layer.embedding_layers.age.weight": torch.ones(4, 1)}
    torch.save(state, tmp_path / "number.model")
    with pytest.raises(CheckpointError, match="fields age have no embeddings of 4 numbers"):
        mlpdeploy.reference("finalmlp", checkpoint=tmp_path / "number.model")


def test_the_batch_stays_symbolic() -> None:
    network = tiny()
    traced = trace(network, [TensorSpec("ids", (3,), torch.int64, 0, 5)])
    for size in (1, 7):
        torch.testing.assert_close(traced.module(IDS[:size])[0], network(IDS[:size]))


def test_proof_of_finalmlp() -> None:
    prove("finalmlp")


def test_proof_of_dualmlp() -> None:
    prove("dualmlp", "bf16")


def test_integer_ids_through_the_whole_product(cli: Cli, tmp_path: Path) -> None:
    options = ("--backend", "onnxruntime", "--precision", "fp32", "--batch", "1:4:8")
    cli("build", "finalmlp", *options)
    found = json.loads(cli("verify", "finalmlp", *options, "--json").stdout)
    assert found["passed"]
    assert found["stages"][-1]["status"] == "passed"
    inspected = json.loads(cli("inspect", "finalmlp", "--json").stdout)
    assert inspected["verification"]["passed"]
    assert "ids" in cli("list", "finalmlp").stdout
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "images" / "one.png")
    failed = cli("verify", "finalmlp", *options, "--data", tmp_path / "images", code=2)
    assert "takes no single image but ids (10,) of int64: give an .npz file with these arrays" in failed.stderr
    assert "takes no images: drop --image-size" in cli("build", "finalmlp", "--image-size", "32", code=2).stderr


def test_classes_of_a_network_without_any_are_refused() -> None:
    with pytest.raises(InputError, match="does not classify"):
        mlpdeploy.reference("finalmlp", num_classes=3)
