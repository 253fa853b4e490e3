"""An engine in hand: called, proved, printed, reported on, saved and loaded again."""

from __future__ import annotations

import gc
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import mlpdeploy
from mlpdeploy import Engine
from mlpdeploy.errors import ArtifactError, InputError, MachineLacks
from tests.test_api import Net, Two, images


@pytest.fixture(scope="module")
def engine() -> Engine:
    return mlpdeploy.compile(Net(), images(2), precision="fp32", backend="openvino", batch="1:4:8")


def test_tensors_give_tensors_and_arrays_give_arrays(engine: Engine) -> None:
    x = images(5, seed=1)
    expected = Net().eval()(x).detach()
    found = engine(x)
    assert isinstance(found, Tensor) and torch.allclose(found, expected, atol=1e-5)
    array = engine(x.double().numpy())
    assert isinstance(array, np.ndarray) and array.dtype == np.float32 and np.array_equal(array, found.numpy())
    assert np.array_equal(engine({"input": x.numpy()}), array)


def test_it_is_proved_and_the_proof_is_kept(engine: Engine) -> None:
    found = engine.verify()
    assert found.passed and found.stages[-1].status == "passed" and found.sizes == (1, 4, 8)
    document = json.loads((engine.folder / "verification.json").read_text())
    assert document["verdict"] == found.verdict() and document["recipe"] == "python:Net"
    assert found.verdict() in (engine.folder / "report.md").read_text()


def test_a_report_of_an_engine_in_a_temporary_folder_needs_a_place(tmp_path: Path) -> None:
    engine = mlpdeploy.compile(Net(), images(1), precision="fp32", backend="onnxruntime", batch=1)
    with pytest.raises(InputError, match="this engine's folder goes with it"):
        engine.report()
    (page,) = engine.report(markdown=tmp_path / "page.md")
    assert page.exists()
    assert len(mlpdeploy.load(engine.save(tmp_path / "kept")).report()) == 2


@pytest.mark.slow
def test_what_is_found_prints_as_one_line(engine: Engine) -> None:
    found = engine.bench(against=["eager"], sizes=[1], seconds=0.1, threads=1)
    assert re.fullmatch(r"<Bench of .*, batch 1: .* ms, eager .* ms>", repr(found)) and len(repr(found)) < 200
    assert re.fullmatch(r"<Verification in \w+ at batch [\d, ]+: passed.*>", repr(engine.verify()))


@pytest.mark.slow
def test_saved_and_loaded_elsewhere(engine: Engine, tmp_path: Path) -> None:
    folder = engine.save(tmp_path / "mine")
    loaded = mlpdeploy.load(folder)
    assert torch.equal(loaded(images(3)), engine(images(3))) and loaded.manifest == engine.manifest
    assert mlpdeploy.load(folder / "model.onnx").folder == folder
    assert loaded.verify(Net()).passed and json.loads((folder / "verification.json").read_text())["passed"]
    with pytest.raises(InputError, match=r"does not hold the network.*engine\.verify\(network\)"):
        loaded.verify()
    with pytest.raises(ArtifactError, match="a network with other weights"):
        loaded.verify(Net(seed=1))
    # Saved over itself, nothing changes; over another artifact, that one is replaced.
    assert engine.save(engine.folder) == engine.folder
    other = mlpdeploy.compile(Net(1), images(1), precision="fp32", backend="onnxruntime", batch=2)
    other.save(folder)
    assert mlpdeploy.load(folder).manifest["backend"] == "onnxruntime"


def test_nothing_is_lost_where_something_else_lies(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="is no artifact of mlpdeploy"):
        engine.save(tmp_path)
    with pytest.raises(InputError, match="is no artifact of mlpdeploy"):
        engine.save(tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_several_inputs_and_outputs() -> None:
    network, example = Two(), (torch.randn(3, 4), torch.randint(0, 7, (3, 5)))
    example[1][0, 0], example[1][0, 1] = 0, 6
    engine = mlpdeploy.compile(network, example, precision="fp32", backend="onnxruntime", batch="1:2:4")
    assert [(one["name"], one["dtype"], one.get("high")) for one in engine.inputs] == [
        ("scale", "float32", None),
        ("ids", "int64", 7),
    ]
    found, expected = engine(*example), network(*example)
    assert isinstance(found, tuple) and all(
        torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True)
    )
    assert torch.equal(engine({"ids": example[1].int(), "scale": example[0]})[0], found[0])
    assert torch.equal(engine(example)[0], found[0]) and torch.equal(engine(list(example))[1], found[1])
    assert engine.verify().passed
    with pytest.raises(InputError, match="'ids' takes int64, it was given float32"):
        engine(example[0], example[1].float())
    with pytest.raises(InputError, match="2 inputs are taken"):
        engine(example[0])
    with pytest.raises(InputError, match="the inputs are called scale, ids"):
        engine({"scale": example[0], "id": example[1]})


class Heads(nn.Module):
    """A dict of two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.logits, self.features = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.logits(x), "features": self.features(x)}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_network_that_returns_a_dict_becomes_an_engine_that_does(backend: str, tmp_path: Path) -> None:
    network, x = Heads(), torch.randn(2, 4)
    engine = mlpdeploy.compile(network, x, precision="fp32", backend=backend, batch="1:2:4")
    expected = network(x)
    for one in (engine, mlpdeploy.load(engine.save(tmp_path / "kept"))):
        found = one(x)
        assert list(found) == ["logits", "features"]
        assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in found)
    assert [port["name"] for port in engine.manifest["outputs"]] == ["logits", "features"]
    assert engine.verify().passed


@pytest.mark.slow
def test_the_temporary_folder_goes_with_the_engine_and_a_named_one_stays(tmp_path: Path) -> None:
    def make(**options: Any) -> Engine:
        return mlpdeploy.compile(Net(), images(1), precision="fp32", backend="onnxruntime", batch=1, **options)

    engine = make()
    folder = engine.folder
    assert folder.exists()
    with engine:
        engine(images(1))
    del engine
    gc.collect()
    assert not folder.exists()
    first, again = make(out=tmp_path, name="my net"), make(out=tmp_path, name="my net")
    assert first.folder == tmp_path / "python-my-net" / "fp32" / "onnxruntime"
    assert not first.cached and again.cached
    other = mlpdeploy.compile(
        Net(1), images(1), precision="fp32", backend="onnxruntime", batch=1, out=tmp_path, name="my net"
    )
    assert not other.cached


@pytest.mark.slow
def test_where_the_engine_cannot_run_a_call_says_so_and_the_rest_works(tmp_path: Path) -> None:
    reason = mlpdeploy.doctor()
    backend = next(one for one in reason["backends"] if one["name"] == "tensorrt-rtx")
    if backend["cannot_build"] is not None or backend["cannot_run"] is None:
        pytest.skip("needs tensorrt-rtx on a machine that cannot run its engines")
    engine = mlpdeploy.compile(Net(), images(1), precision="fp16", backend="tensorrt-rtx", batch="1:2:4")
    assert engine.cannot_run == backend["cannot_run"]
    with pytest.raises(MachineLacks, match="the tensorrt-rtx engine cannot run on this machine: no NVIDIA GPU"):
        engine(images(1))
    assert engine.verify().verdict() == "passed (engine not executed)"
    assert mlpdeploy.load(engine.save(tmp_path / "kept")).cannot_run == engine.cannot_run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "has schema 99, this mlpdeploy reads 3"),
        ({"inputs": None}, "inputs is missing"),
        ({"selection": {"name": "vip_s7", "colour": "red"}}, "of another version"),
    ],
)
def test_artifacts_of_other_versions(change: dict[str, Any], message: str, engine: Engine, tmp_path: Path) -> None:
    folder = engine.save(tmp_path / "other")
    manifest = json.loads((folder / "manifest.json").read_text()) | change
    (folder / "manifest.json").write_text(json.dumps({k: v for k, v in manifest.items() if v is not None}))
    with pytest.raises(InputError, match=message):
        mlpdeploy.load(folder).verify()
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(ArtifactError, match="is no document of mlpdeploy"):
        mlpdeploy.load(folder)


def test_the_calls_of_the_run_are_checked(engine: Engine) -> None:
    with pytest.raises(InputError, match="built for batch 1 to 8; it was given 9"):
        engine(images(9))
    with pytest.raises(InputError, match=r"it was given float32 \[1, 3, 8, 8\]"):
        engine(torch.ones(1, 3, 8, 8))
    with pytest.raises(InputError, match="'input' is a list"):
        engine(
            [[1.0]],
        )
    assert repr(engine) == "<mlpdeploy.Engine python:Net fp32 openvino, batch 1:4:8>"


def test_a_recipe_s_engine_is_loaded_by_its_folder_and_needs_no_network(tmp_path: Path) -> None:
    selection = mlpdeploy.Selection("ff_g2m_student", "fp32", "onnxruntime", "1", out=tmp_path)
    built = mlpdeploy.build(selection)
    engine = mlpdeploy.load(built.folder)
    x, network = torch.rand(1, 1433), mlpdeploy.reference("ff_g2m_student")
    for found, expected in zip(engine(x), tree_leaves(network(x)), strict=True):
        assert torch.allclose(found, expected, atol=1e-4)
    assert engine.verify().passed
    with pytest.raises(InputError, match="found by its name"):
        engine.verify(network)
