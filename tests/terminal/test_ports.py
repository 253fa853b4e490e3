"""What engines take and give: several inputs on the command line, and the names of inputs and outputs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import mlpdeploy
from mlpdeploy.errors import InputError
from mlpdeploy.selection.parse import parse_input
from mlpdeploy.terminal import cli as command_line
from mlpdeploy.zoo.recipe import Input

NETS = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.linear, self.dense = nn.Embedding(7, 4), nn.Linear(4, 3), nn.Linear(2, 4)
    def forward(self, ids, dense):
        return self.linear(self.table(ids).mean(1) * self.dense(dense)), dense + 1

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
    def forward(self, x):
        return {"scores": self.linear(x), "twice": 2 * x}
"""
TWO = ("port_nets:Two", "--input", "ids:5:int64:0..6", "--input", "dense:2", "--batch", "1:2:3")
BUILT = ("--precision", "fp32", "--backend", "onnxruntime")
Document = Callable[..., Any]


@pytest.fixture
def document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Document:
    """Run a command with --json; its document, or its error."""
    (tmp_path / "port_nets.py").write_text(NETS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("port_nets", None)

    def called(*arguments: str, code: int = 0) -> Any:
        with pytest.raises(SystemExit) as left:
            command_line.main([*arguments, "--json"])
        printed = capsys.readouterr()
        assert left.value.code == code, printed
        found = json.loads(printed.out)
        return found if code == 0 else found["error"]["message"]

    return called


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x:3,224,224", Input("x", (3, 224, 224))),
        ("x:3x8x16:float32", Input("x", (3, 8, 16))),
        ("ids:16:int64:0..999", Input("ids", (16,), "int64", 0, 1000)),
        ("t::float32:0..1", Input("t", (), "float32", 0, 1)),
        ("d:4:int64:-2..-2", Input("d", (4,), "int64", -2, -1)),
    ],
)
def test_inputs_as_text(text: str, expected: Input) -> None:
    assert parse_input(text) == expected


@pytest.mark.slow
def test_two_inputs_on_the_command_line(document: Document) -> None:
    built = document("build", *TWO, *BUILT)
    ports = [(one["name"], one["shape"], one["dtype"]) for one in built["manifest"]["inputs"]]
    assert ports == [("ids", ["batch", 5], "int64"), ("dense", ["batch", 2], "float32")]
    assert document("verify", *TWO, *BUILT)["passed"] and document("verify", built["folder"])["passed"]
    assert document("build", *TWO, *BUILT)["cached"]
    assert "--input" in (Path(built["folder"]) / "report.md").read_text()


def test_names_on_the_command_line(document: Document) -> None:
    named = (*TWO, *BUILT, "--input-names", "tokens,features", "--output-names", "logits,next")
    built = document("build", *named)
    model = onnx.load(Path(built["folder"]) / "model.onnx")
    assert [one.name for one in model.graph.input] == ["tokens", "features"]
    assert [one.name for one in model.graph.output] == ["logits", "next"]
    assert document("verify", *named)["passed"] and document("verify", built["folder"])["passed"]
    found = mlpdeploy.load(built["folder"])({"tokens": np.zeros((1, 5), np.int64), "features": np.ones((1, 2), "f4")})
    assert np.array_equal(found[1], [[2, 2]])
    assert "output_names [] (built with ['logits', 'next'])" in document("verify", *TWO, *BUILT, code=2)


@pytest.mark.parametrize("option", ["--input-names", "--output-names"])
def test_another_number_of_names_is_one_line(document: Document, option: str) -> None:
    assert "3 names" in document("build", *TWO, *BUILT, option, "a,b,c", code=2)


@pytest.mark.slow
def test_a_recipes_input_may_be_called_otherwise(document: Document) -> None:
    made = ("mint_wqk", *BUILT, "--batch", "1", "--input-names", "image")
    assert [one["name"] for one in document("build", *made)["manifest"]["inputs"]] == ["image"]
    assert document("verify", *made)["passed"]


def test_names_in_python(document: Document) -> None:
    import port_nets  # type: ignore[import-not-found]

    given = {"precision": "fp32", "backend": "onnxruntime", "batch": "1:2:3"}
    network, x = port_nets.Net(), torch.randn(2, 4)
    engine = mlpdeploy.compile(network, x, input_names=["rows"], output_names=["a", "b"], **given)
    found = engine(x)
    assert list(found) == ["a", "b"] and torch.equal(found["b"], 2 * x)
    assert [one["name"] for one in engine.inputs] == ["rows"] and engine.verify().passed
    kept = mlpdeploy.load(engine.save("kept"))
    assert kept.verify(network).passed
    with pytest.raises(InputError, match="1 names of outputs, and the network returns 2 tensors"):
        mlpdeploy.compile(network, x, output_names=["a"], **given)


def test_an_output_called_as_an_input_is_one_line(document: Document) -> None:
    said = document("build", "port_nets:Net", "--input-shape", "4", "--output-names", "input,b", *BUILT, code=2)
    assert said == "--output-names: input is what an input is called; give the output another name"
